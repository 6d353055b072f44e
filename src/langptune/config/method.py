"""The interface of the benchmark's methods, and the part that methods with training share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from langptune.config.base import Strict, nearest
from langptune.config.phases import Phase, Transfer
from langptune.config.recipes import Recipe

if TYPE_CHECKING:
    from langptune.config.settings import Config
    from langptune.config.workflow import Workflow


class EncoderFrom(Strict):
    """A trained encoder of another dataset, for `encoder_from` of a profile method."""

    method: str = Field(description="profile method that trains the encoder; it need not be a method of the run")
    dataset: str = Field(description="dataset of the run on which it is trained; the method has no run on it")


class EditReading(Strict):
    """How the explorer and the measure of steering read edited profiles. The benchmark itself ranks none.

    The change that an edit makes is added to the similarities of the unedited profile, so those stay as they are.
    """

    untrained: Annotated[float, Field(ge=0, strict=False, allow_inf_nan=False)] = Field(
        0.0, description="weight of the change that the untrained decoder sees, added to that of the trained one"
    )
    denials: Annotated[float, Field(ge=0, strict=False, allow_inf_nan=False)] | None = Field(
        None, description="weight of denials in edited profiles; null: as in unedited ones (`denials`)"
    )


class Method(Strict):
    """One method: it turns sessions into ranks.

    Other code uses these attributes and functions, and does not test a method's class. ``methods`` are the entries of
    the registry by name; a control needs them to look up the method that it names.

    ranked_by: the rule that computes its ranks.
    writes_profiles: an encoder writes profiles for it.
    cheap: its jobs take seconds, so that several share one allocation of a cluster.
    curve: it has a learning curve as well as ranks.
    """

    ranked_by: ClassVar[str]
    writes_profiles: ClassVar[bool] = False
    cheap: ClassVar[bool] = False
    curve: ClassVar[bool] = False

    title: str = Field(description="name in tables and plots")
    group: Literal["profiles", "text controls", "baselines", "bounds"] = Field(description="its block in the table")
    note: str = Field("", description="note on this row, one line under the table")

    def source(self, name: str) -> str:
        """The name of the method whose texts, phases and models this method uses: its own, ``name``."""
        return name

    def text(self, methods: Mapping[str, Method]) -> str | None:
        """Text of a session: ``profiles``, ``shuffled-profiles``, ``history`` or ``last-item``; None without a text."""
        return None

    def changes(self) -> str | None:
        """Its change of its source; None if it changes nothing."""
        return None

    def one_seed(self, methods: Mapping[str, Method]) -> bool:
        """Whether it uses no random numbers, so that one seed is enough."""
        return self.deterministic

    def one_profile(self, methods: Mapping[str, Method]) -> bool:
        """Whether it has one profile for each session: its own, or another user's."""
        return False

    def weight(self, methods: Mapping[str, Method]) -> float | Literal["auto"] | None:
        """The weight of popularity in its scores; None if it ranks without a text."""
        return None

    def weight_of_denials(self, methods: Mapping[str, Method]) -> float | Literal["auto"]:
        """The weight of denials in its texts; 0 if they are embedded whole, or it ranks without a text."""
        return 0.0

    def reads_edits(self, methods: Mapping[str, Method]) -> EditReading:
        """How edits of its texts are read; by default as unedited texts."""
        return EditReading()

    def models(self, config: Config, methods: Mapping[str, Method]) -> list[str]:
        """The ``{models}`` path segments of its runs."""
        raise NotImplementedError

    def origin(self) -> EncoderFrom | None:
        """The method and dataset whose encoder writes its profiles; None if its encoder is its own, or it has none."""
        return None

    def runs_on(self, dataset: str, methods: Mapping[str, Method]) -> bool:
        """Whether it has runs on a dataset of the config."""
        return True

    @property
    def trained(self) -> bool:
        """Whether it ranks by texts with a trained encoder or decoder."""
        return False

    def parts(self) -> list[str]:
        """The methods whose scores or ranks it combines; empty if it ranks by its own."""
        return []

    def adds_scores(self) -> bool:
        """Whether it reads the scores of its parts, which are kept only for such a method."""
        return False

    def points(self, trials: int | None = None, seed: int = 0) -> list[dict[str, Any]]:
        """The points that are tried on validation; empty if nothing is tuned. ``Workflow.points`` has the arguments."""
        return []

    def untuned(self) -> Self:
        """The method without its validation grid."""
        return self

    def check_names(self) -> None:
        """Check names that a library defines, if that library is installed.

        Raises:
            UserError: an unknown name.
        """

    def problems(self, name: str, workflow: Workflow) -> Iterator[str]:
        """Reasons why a workflow cannot run it, one line each. Later ones may be consequences of the first."""
        yield from ()


class TrainedMethod(Method):
    """A method with training; without phases nothing is trained."""

    phases: list[str] = Field([], description="entries of config/recipes.yaml, in the order of one iteration")
    iterations: Annotated[int, Field(ge=1)] = Field(1, description="number of times that all phases are run (PAPER: K)")
    train_fraction: Annotated[float, Field(gt=0, le=1, strict=False)] = Field(
        1.0,
        description="share of the train sessions used in training, and as further targets of rewards; smaller shares "
        "are subsets of larger ones. The popularity of items is always that of all train sessions",
    )
    popularity: Literal["auto"] | Annotated[float, Field(ge=0, strict=False, allow_inf_nan=False)] = Field(
        "auto",
        description="weight of log(1 + train count of the item) in the score, added to the text's similarity / 0.05; "
        "auto: chosen on validation after the decoder's training (training.popularity_weights); 0: text alone",
    )
    denials: Literal["auto"] | Annotated[float, Field(ge=0, strict=False, allow_inf_nan=False)] = Field(
        0.0,
        description='weight of what a text denies ("They dislike horror"): denials are taken out of the text, and the '
        "similarity to what they deny is subtracted with this weight; training a decoder on profiles leaves them out. "
        "0: texts are embedded whole; auto: 0, 0.25, 0.5, 0.75 or 1, chosen with the weight of popularity, on "
        "validation profiles where there are profiles (of equal values the largest)",
    )
    edit_reading: EditReading = Field(
        EditReading(), description="how edited profiles are read (explorer, steering); no rank of the benchmark changes"
    )

    ranked_by = "rank_texts"

    def weight(self, methods: Mapping[str, Method]) -> float | Literal["auto"]:
        """The weight of popularity in its scores."""
        return self.popularity

    def weight_of_denials(self, methods: Mapping[str, Method]) -> float | Literal["auto"]:
        """The weight of denials in its texts."""
        return self.denials

    def reads_edits(self, methods: Mapping[str, Method]) -> EditReading:
        """How edits of its texts are read."""
        return self.edit_reading

    @property
    def trained(self) -> bool:
        """Whether it has phases."""
        return bool(self.phases)

    def phase(
        self, prompt: str | None, iteration: tuple[tuple[str, Recipe], ...], transfer: Transfer | None = None
    ) -> Phase:
        """The phase after which it is evaluated.

        Args:
            prompt: the dataset's default prompt.
            iteration: names and recipes of its ``phases``.
            transfer: the encoder that ``origin`` names.
        """
        histories = not self.writes_profiles
        chain = tuple((name, recipe.resolved(self.history_items, histories)) for name, recipe in iteration)
        weight, denials = (None if value == "auto" else value for value in (self.popularity, self.denials))
        prompt, tokens = self._written(prompt)
        chain *= self.iterations
        return Phase(prompt, self.history_items, tokens, self.train_fraction, chain, weight, transfer, denials)

    def _written(self, prompt: str | None) -> tuple[str | None, int]:
        """Prompt and longest profile; None and 0 without an encoder."""
        return None, 0

    def _phase_problems(self, name: str, workflow: Workflow) -> Iterator[str]:
        at = f"method '{name}': phases:"
        encoders = workflow.config.encoders if self.writes_profiles else []
        for phase in self.phases:
            if phase not in workflow.recipes:
                yield f"{at} unknown recipe '{phase}'{nearest(phase, list(workflow.recipes))}"
                return
            recipe = workflow.recipes[phase]
            if not self.writes_profiles and recipe.trains != "decoder":
                what = "depends on" if recipe.trains is None else "trains"
                yield f"{at} '{phase}' {what} an encoder, but the method has none; use a contrastive recipe"
            for problem in recipe.problems(phase, workflow.config.encoders, workflow.recipes):
                yield f"{at} {problem}"
            for encoder in encoders:
                used, trained = workflow.recipe_of(phase, encoder)
                if trained.trains == "decoder" and (trained.texts, trained.sessions) == ("profiles", "all"):
                    yield (
                        f"{at} '{used}': sessions: 'all' is for histories, but it trains on profiles, which are "
                        "written for sampled sessions; raise sample.train, or set its texts to 'mixed'"
                    )
                if workflow.models[encoder].source.endpoint is not None and trained.trains == "encoder":
                    yield (
                        f"{at} '{phase}' trains the encoder, but encoder '{encoder}' is an endpoint without local "
                        "weights; run it in a config without this method"
                    )
        for encoder in encoders:
            chain = [workflow.recipe_of(phase, encoder) for phase in self.phases]
            yield from (f"{at} {problem}" for problem in _adapter_problems(chain))
        chains = [[workflow.recipe_of(phase, encoder)[1] for phase in self.phases] for encoder in encoders]
        for chain in chains or [[workflow.recipes[phase] for phase in self.phases]]:
            if self.edit_reading.untrained and not any(recipe.trains == "decoder" for recipe in chain):
                yield (
                    f"method '{name}': edit_reading: untrained is {self.edit_reading.untrained:g}, but no phase trains "
                    "its decoder; leave it out, or add a phase that does"
                )
                return


def _adapter_problems(chain: list[tuple[str, Recipe]]) -> Iterator[str]:
    """Recipes of a chain that train the encoder must train the same weights: each continues the adapter before it."""
    trained = [(name, recipe.train) for name, recipe in chain if recipe.trains == "encoder"]
    for name, train in trained[1:]:
        first, expected = trained[0]
        if differing := [key for key in type(train).model_fields if getattr(train, key) != getattr(expected, key)]:
            key = differing[0]
            yield (
                f"'{name}' continues the adapter of '{first}', but its train.{key} is {getattr(train, key)} and not "
                f"{getattr(expected, key)}; make them equal (recipe_overrides)"
            )
