"""Checks of a config against its registries: names, models, phases, contrasts and limits."""

from __future__ import annotations

from langptune import metrics
from langptune.config.base import nearest
from langptune.config.workflow import Workflow
from langptune.errors import UserError


def _check_tokens(workflow: Workflow, study: str, where: str) -> None:
    """Variants of a reinforcement recipe must have the same token limit; otherwise they would differ in that too."""
    definition = workflow.config.studies[study]
    for method in definition.methods if definition.key == "recipe" else ():
        written: dict[int, str] = {}
        for one in workflow.variants(study):
            entry = workflow.methods[one.name]
            recipe = workflow.recipes.get(f"{definition.recipe}{one.name.removeprefix(one.of)}")
            if one.of != method or not one.setting or recipe is None or recipe.trains != "encoder":
                continue
            longest = recipe.max_tokens or entry.max_tokens
            written.setdefault(recipe.batches * recipe.sessions_per_batch * recipe.samples * longest, one.name)
        if len(written) > 1:
            (first, name), (second, other) = list(written.items())[:2]
            raise UserError(
                f"{where}: studies: {study}: '{name}' writes at most {first:,} tokens and '{other}' {second:,}; make "
                "batches x sessions_per_batch x samples x max_tokens the same for all"
            )


def _check_study_reference(workflow: Workflow, study: str, where: str) -> None:
    """A study's reference must be a method that the study runs unchanged."""
    chosen = workflow.config.studies[study].reference
    unchanged = [one.name for one in workflow.variants(study) if one.name == one.of]
    if chosen is not None and chosen not in unchanged:
        raise UserError(
            f"{where}: studies: {study}: reference: '{chosen}' is not a method that the study leaves unchanged "
            f"({', '.join(unchanged) or 'it varies all'}){nearest(chosen, unchanged)}"
        )


def _check_titles(workflow: Workflow, where: str) -> None:
    """Titles of a run's methods, models and judges must differ, so that tables, figures and pages distinguish them."""
    config = workflow.config
    studied = [one.name for study in config.studies for one in workflow.variants(study)]
    for what, key, names, entries in (
        ("methods", "overrides", [*config.methods, *studied], workflow.methods),
        ("models", "models.yaml", [*config.encoders, *config.decoders], workflow.models),
        ("judges", "judges.yaml", config.interpretability.judges, workflow.judges),
    ):
        seen: dict[str, str] = {}
        for name in dict.fromkeys(names):
            # Pages collapse white space, so that titles that differ only in it look the same.
            title = " ".join(entries[name].title.split())
            other = seen.setdefault(title, name)
            if other != name:
                raise UserError(
                    f"{where}: {what} '{other}' and '{name}' have the same title '{title}'; change one of them ({key})"
                )


def _check_interpretability(workflow: Workflow, where: str) -> None:
    interpretability, at = workflow.config.interpretability, f"{where}: interpretability"
    for name in interpretability.methods:
        if name not in workflow.config.methods:
            raise UserError(
                f"{at}.methods: '{name}' is not among this run's methods{nearest(name, workflow.config.methods)}"
            )
        if not workflow.one_profile(name):
            raise UserError(f"{at}.methods: '{name}' does not have exactly one profile per session; leave it out")
    if interpretability.methods and interpretability.reference not in interpretability.methods:
        raise UserError(
            f"{at}.reference: '{interpretability.reference}' is not among interpretability.methods; add it there"
        )
    if interpretability.reference in workflow.readable:
        _check_everywhere(workflow, interpretability.reference, f"{at}.reference")
    for key, name in (
        ("accuracy_of", interpretability.accuracy_of),
        ("steerability_of", interpretability.steerability_of),
    ):
        if name is not None and name not in workflow.readable:
            raise UserError(
                f"{at}.{key}: '{name}' is not among the methods that are measured{nearest(name, workflow.readable)}"
            )
        if name is not None:
            _check_everywhere(workflow, name, f"{at}.{key}")
    for key, name, roles in (
        ("verifier", interpretability.verifier, ("verifier", "decoder")),
        ("reader", interpretability.reader, ("encoder", "decoder")),
    ):
        known = [model for model, entry in workflow.models.items() if entry.role in roles]
        if name is not None and name not in known:
            raise UserError(f"{at}.{key}: unknown entry '{name}'{nearest(name, known)}")
    for name in interpretability.judges:
        if name not in workflow.judges:
            raise UserError(f"{at}.judges: unknown entry '{name}'{nearest(name, list(workflow.judges))}")
    if workflow.readable and workflow.models[workflow.reader].source.endpoint is not None:
        raise UserError(
            f"{at}.reader: '{workflow.reader}' is an endpoint, which returns no likelihoods; name a local model"
        )
    if interpretability.reader in workflow.config.decoders:
        raise UserError(
            f"{at}.reader: '{interpretability.reader}' is a decoder of this run, for which profiles are "
            "trained; use a reader to which they cannot overfit: an encoder, or another decoder"
        )


def check(workflow: Workflow, where: str) -> None:
    """Check what no entry can check by itself.

    Raises:
        UserError: one line with the key and the value.
    """
    config = workflow.config
    for key, names, known in (
        ("datasets", config.datasets, list(workflow.datasets)),
        ("methods", config.methods, list(workflow.methods)),
        ("encoders", config.encoders, [n for n, m in workflow.models.items() if m.role == "encoder"]),
        ("decoders", config.decoders, [n for n, m in workflow.models.items() if m.role == "decoder"]),
    ):
        for name in names:
            if name not in known:
                raise UserError(f"{where}: {key}: unknown entry '{name}'{nearest(name, known)}")
    for dataset in config.datasets:
        _check_limits(workflow, dataset)
    studied = [one.name for study in config.studies for one in workflow.variants(study)]
    for study in config.studies:
        _check_tokens(workflow, study, where)
        _check_study_reference(workflow, study, where)
    for name in [*config.methods, *studied]:
        for problem in workflow.methods[name].problems(name, workflow):
            raise UserError(f"{where}: {problem}")
    # After the check of the methods' models: the measures of profiles use them.
    _check_interpretability(workflow, where)
    _check_titles(workflow, where)
    comparison = config.comparison
    if workflow.reference not in config.methods:
        raise UserError(
            f"{where}: comparison.reference: '{workflow.reference}' is not among this run's methods"
            + nearest(workflow.reference, config.methods)
        )
    _check_everywhere(workflow, workflow.reference, f"{where}: comparison.reference")
    _check_contrasts(workflow, where)
    for dataset in config.datasets:
        expected = workflow.datasets[dataset].expect
        for metric in comparison.metrics:
            k = metrics.parse(metric)[1]
            if expected is not None and k is not None and k > expected.items:
                raise UserError(
                    f"{where}: comparison.metrics: '{metric}': the cut-off is larger than the catalogue of "
                    f"{expected.items} items of '{dataset}'"
                )
    if comparison.main_metric not in comparison.metrics:
        raise UserError(
            f"{where}: comparison.main_metric: '{comparison.main_metric}' is not among comparison.metrics"
            + nearest(comparison.main_metric, comparison.metrics)
        )


def _check_everywhere(workflow: Workflow, reference: str, at: str) -> None:
    """The reference, with which others are compared, must have runs on all datasets."""
    for dataset in workflow.config.datasets:
        if not workflow.runs_on(reference, dataset):
            raise UserError(
                f"{at}: '{reference}' has no run on '{dataset}', where its encoder is trained; name a method that runs "
                "on all datasets"
            )


def _check_contrasts(workflow: Workflow, where: str) -> None:
    """Contrasts name methods of the run that share a dataset, and no two contrasts are the same."""
    config = workflow.config
    pairs: dict[frozenset[frozenset[str]], str] = {}
    for name, contrast in config.comparison.contrasts.items():
        at = f"{where}: comparison.contrasts: '{name}'"
        for key, method in (
            ("of", contrast.of),
            ("against", contrast.against),
            *(("beyond", one) for one in contrast.beyond),
        ):
            if method not in config.methods:
                raise UserError(
                    f"{at}: {key}: '{method}' is not among this run's methods{nearest(method, config.methods)}"
                )
        for one, two in ((contrast.of, contrast.against), *([contrast.beyond] if contrast.beyond else [])):
            if one == two:
                raise UserError(f"{at}: '{one}' is on both sides; name two different methods")
        if not any(name in workflow.contrasts_of(dataset) for dataset in config.datasets):
            raise UserError(f"{at}: no dataset has runs of all of {', '.join(contrast.methods)}; leave it out")
        sides = (frozenset((contrast.of, contrast.against)), frozenset(contrast.beyond))
        if sides[0] == sides[1]:
            raise UserError(f"{at}: beyond: the same two methods as in of and against; name two others")
        other = pairs.setdefault(frozenset(sides), name)
        if other != name:
            raise UserError(f"{at}: the same methods as '{other}'; keep one, as the correction would count both")


def _check_limits(workflow: Workflow, dataset: str) -> None:
    """The models and the prompt that count a dataset's texts must exist."""
    entry = workflow.datasets[dataset]
    limits = getattr(entry.protocol, "limits", None)
    if limits is None:
        return
    for role in ("encoder", "decoder"):
        known = [name for name, model in workflow.models.items() if model.role == role]
        if (name := getattr(limits, role)) not in known:
            raise UserError(
                f"datasets.yaml: {dataset}: protocol.limits.{role}: unknown entry '{name}'{nearest(name, known)}"
            )
    if workflow.models[limits.encoder].source.endpoint is not None:
        raise UserError(
            f"datasets.yaml: {dataset}: protocol.limits.encoder: '{limits.encoder}' is an endpoint, without a local "
            "tokenizer; name an encoder with files"
        )
    if entry.prompt not in workflow.prompts:
        raise UserError(
            f"datasets.yaml: {dataset}: unknown prompt '{entry.prompt}'{nearest(entry.prompt, list(workflow.prompts))}"
        )
