"""The models behind the page: decoders rank texts, encoders write profiles."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from langptune.config.layout import decoder_of, encoder_of
from langptune.config.methods import ProfileMethod
from langptune.data import contracts
from langptune.errors import UserError
from langptune.explorer.finished import Choice, Finished
from langptune.randomness import profile_seed
from langptune.ranking.decoder import ItemVectors
from langptune.ranking.edited import EditReader, weight_of
from langptune.ranking.queries import Denials, embed_queries
from langptune.ranking.ranks import full_ranks
from langptune.ranking.scoring import Scoring, read_weight, score

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from langptune.config.method import EditReading
    from langptune.language.denials import Parts

OWN = -1
"""The session number of a history that was typed in; the seed of a sampled profile depends on it."""

TEXTS = 256
"""Size of a decoder's cache of text vectors."""

WRITERS = 4
"""Limit on profiles that are being written or waiting; each has a thread."""


class Cancelled(Exception):
    """The client that asked for a profile has disconnected."""


@dataclass(frozen=True)
class Ranking:
    """A text's ranking of the catalogue.

    rank: the target's rank, as in ranks.parquet; None without a target.
    order: int32 ``[M]``, the unseen items, best first, equal scores by ascending item.
    cut: the text was longer than the decoder's limit.
    """

    rank: int | None
    order: np.ndarray
    cut: bool

    def places(self, items: int) -> np.ndarray:
        """int64 ``[items]``: each item's place in the order, from 1; 0 for seen items."""
        out = np.zeros(items, dtype=np.int64)
        out[self.order] = np.arange(1, len(self.order) + 1)
        return out


@dataclass
class Decoder:
    """A loaded decoder with its embeddings of the catalogue and the popularity of the items."""

    model: SentenceTransformer
    prefix: str
    vectors: ItemVectors
    popularity: np.ndarray
    known: OrderedDict[tuple[str, float], tuple[np.ndarray, bool]] = field(default_factory=OrderedDict)

    def vector(self, text: str, denials: Denials | None = None) -> tuple[np.ndarray, bool]:
        """The text's vector, float32 ``[D]``, and whether the text was cut."""
        key = text, weight_of(denials)
        if key not in self.known:
            done = embed_queries(self.model, [text], self.prefix, denials)
            self.known[key] = (done.vectors[0], done.cut > 0)
            if len(self.known) > TEXTS:
                self.known.popitem(last=False)
        self.known.move_to_end(key)
        return self.known[key]

    def scoring(self, weight: float) -> Scoring:
        """The scoring of a run with this weight of popularity; several runs may share a decoder."""
        return Scoring(self.vectors, self.popularity, weight)

    def similarities(self, texts: Sequence[str], denials: Denials | None = None) -> np.ndarray:
        """float32 ``[T, N]``: similarities of all items to texts."""
        return self.vectors.scores(np.stack([self.vector(text, denials)[0] for text in texts]))

    def rank(
        self,
        similarities: np.ndarray,
        cut: bool,
        seen: Sequence[int],
        target: int | None = None,
        weight: float = 0.0,
    ) -> Ranking:
        """Rank the catalogue with the benchmark's code for scores and ranks.

        Args:
            similarities: float32 ``[1, N]``, of all items to the text.
            cut: the text was longer than the decoder's limit.
            weight: of popularity in the score.

        Raises:
            UserError: every item was seen, or scores are not finite.
        """
        scores = score(similarities, self.popularity, weight)
        anchor = target
        if anchor is None:  # any unseen item; its rank is not used
            unseen = np.ones(scores.shape[1], dtype=bool)
            unseen[np.asarray(seen, dtype=np.int64)] = False
            if not unseen.any():
                raise UserError("nothing is left to rank: the history holds the whole catalogue")
            anchor = int(unseen.argmax())
        ranked = full_ranks(scores, [anchor], [seen], top=scores.shape[1])
        order = ranked.top[0]
        return Ranking(None if target is None else int(ranked.rank[0]), order[order >= 0], cut)


class Models:
    """A cache of loaded models: the least recently used are dropped if all together exceed a limit of bytes.

    Two are always kept: a run may read edits with two decoders.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self._held: OrderedDict[Any, tuple[Any, int]] = OrderedDict()

    def get(self, key: Any, load: Callable[[], tuple[Any, int]]) -> Any:
        """The model under a key; ``load`` returns the model and its size in bytes."""
        if key not in self._held:
            self._held[key] = load()
            while len(self._held) > 2 and sum(size for _, size in self._held.values()) > self.limit:
                self._held.popitem(last=False)
        self._held.move_to_end(key)
        return self._held[key][0]

    def __len__(self) -> int:
        return len(self._held)


class Live:
    """Ranks texts and writes profiles for the finished runs of a config."""

    def __init__(self, finished: Finished, memory: int):
        """``memory``: limit on the size of all loaded models in bytes; two are always kept."""
        self.finished = finished
        self.kept = Models(memory)
        # One at a time: loading changes torch's default dtype temporarily, and a tokenizer is not thread-safe.
        self._lock = threading.RLock()
        self._writing = threading.Lock()
        self.writers = threading.BoundedSemaphore(WRITERS)
        self._own: OrderedDict[tuple, tuple[str, str]] = OrderedDict()

    def rank(
        self,
        choice: Choice,
        text: str,
        seen: Sequence[int],
        target: int | None = None,
        weight: float | None = None,
        original: str | None = None,
    ) -> Ranking:
        """Rank by a text as a run does.

        Args:
            weight: of popularity in the score; None: the run's own.
            original: the run's own text, of which ``text`` is an edit; None: the text is read as it is.

        Raises:
            UserError: the model or its vectors cannot be read, or belong to another catalogue.
        """
        with self._lock:
            weight = self.weight(choice) if weight is None else weight
            decoder, denials = self._decoder(choice), self._denials(choice)
            if original in (None, text):
                similarities = decoder.similarities([text], denials)
            else:
                reader = self._reader(choice, decoder)
                similarities, denials = reader.edited([original], [text]), reader.edited_denials
            return decoder.rank(similarities, decoder.vector(text, denials)[1], seen, target, weight)

    def parts(self, choice: Choice, text: str, original: str | None = None) -> Parts | None:
        """What a run reads a text as, if it contains denials; None where the run embeds texts whole.

        Args:
            original: the run's own text, of which ``text`` is an edit. If denials count only in edits, those of the
                original are no part of the change and are left out.

        Raises:
            UserError: the chosen weight of denials cannot be read.
        """
        own = self._denials(choice)
        denials = own if original in (None, text) else self._denials_of_edits(choice)
        if denials is None:
            return None
        parts = denials.splitter.parts(text)
        if own is None and original is not None:
            known = denials.splitter.parts(original).avoids.split(", ")
            parts = replace(parts, avoids=", ".join(one for one in parts.avoids.split(", ") if one not in known))
        return parts

    def edits(self, choice: Choice) -> str:
        """The end of a sentence about the decoder that ranks edits of a run; empty if no other one reads them."""
        weight = self._edit_reading(choice).untrained
        return f"; what the untrained decoder sees in an edit is added (weight {weight:g})" if weight else ""

    def best(self, choice: Choice, profiles: pl.DataFrame) -> pl.DataFrame:
        """Select the profile of each session that the benchmark keeps."""
        from langptune.profiles.best_of import best_samples

        entry = self.finished.workflow.methods[self.finished.layout.source_of(choice.run.method)]
        sessions = self.finished.data(choice.run.dataset).sessions
        rows = sessions.select("session", "history", "seen").join(profiles, on="session").sort("session", "sample")
        first = rows.unique("session", keep="first").sort("session")
        with self._lock:
            decoder = self._decoder(choice)
            texts, denials = rows["profile"].to_list(), self._denials(choice)
            queries = embed_queries(decoder.model, texts, decoder.prefix, denials).vectors
        histories, seen = first["history"].to_list(), first["seen"].to_list()
        score = decoder.scoring(self.weight(choice)).scores
        kept = best_samples(queries, score, histories, seen, entry.history_items)
        wanted = first.select("session").with_columns(pl.Series("sample", kept, dtype=pl.Int32))
        return profiles.join(wanted, on=["session", "sample"], how="semi")

    def weight(self, choice: Choice) -> float:
        """The weight of popularity in a run's scores.

        Raises:
            UserError: the file of the chosen weight cannot be read.
        """
        weight = self.finished.layout.run_weight(choice.run)
        return read_weight(0.0, self.finished.path(weight)) if isinstance(weight, str) else weight

    def largest_weight(self, choice: Choice) -> float:
        """The largest weight of popularity that the page offers: of the config's grid, or twice the run's own."""
        return max(2 * self.weight(choice), *self.finished.workflow.config.training.popularity_weights)

    def _denials(self, choice: Choice) -> Denials | None:
        """How denials count in a run's texts; None where texts are embedded whole."""
        weight = self.finished.layout.run_denials(choice.run)
        if isinstance(weight, str):
            weight = read_weight(0.0, self.finished.path(weight), "denials")
        return self._denials_at(choice, weight)

    def _denials_at(self, choice: Choice, weight: float) -> Denials | None:
        """How denials count at a weight; None at 0."""
        return Denials(weight, self.finished.data(choice.run.dataset).splitter) if weight else None

    def _denials_of_edits(self, choice: Choice) -> Denials | None:
        """How denials count in edited texts."""
        weight = self._edit_reading(choice).denials
        return self._denials(choice) if weight is None else self._denials_at(choice, weight)

    def _edit_reading(self, choice: Choice) -> EditReading:
        methods = self.finished.workflow.methods
        return methods[choice.run.method].reads_edits(methods)

    def _reader(self, choice: Choice, decoder: Decoder) -> EditReader:
        """How a run reads edits."""
        used = self.finished.layout.untrained_decoder(choice.run)
        return EditReader(
            decoder,
            self._denials(choice),
            self._denials_of_edits(choice),
            None if used is None else self._load_decoder(choice, *used),
            self._edit_reading(choice).untrained,
        )

    def _decoder(self, choice: Choice) -> Decoder:
        layout = self.finished.layout
        return self._load_decoder(choice, layout.run_decoder(choice.run), layout.run_vectors(choice.run))

    def _load_decoder(self, choice: Choice, decoder: str, vectors_file: str) -> Decoder:
        folder, file = self.finished.path(decoder), self.finished.path(vectors_file)

        def load() -> tuple[Decoder, int]:
            from langptune.models.load import load_decoder, pick_device

            entry = self.finished.workflow.models[decoder_of(choice.run.models)]
            vectors = ItemVectors.load(file)
            items = len(self.finished.data(choice.run.dataset).items)
            if len(vectors.row_of_item) != items:
                raise UserError(f"{file}: {len(vectors.row_of_item)} items, but the catalogue has {items}; rerun it")
            model = load_decoder(folder, entry, pick_device())
            popularity = self.finished.data(choice.run.dataset).popularity
            return Decoder(model, entry.query_prefix, vectors, popularity), _bytes(model) + vectors.vectors.nbytes

        try:
            changed = file.stat().st_mtime_ns
        except OSError as error:
            raise UserError(f"{file}: {error.strerror}; rerun the embedding rule") from None
        return self.kept.get(("decoder", folder, file, changed), load)

    def written(self, choice: Choice, own: Sequence[tuple[int, float]]) -> tuple[str, str] | None:
        """The profile that the explorer wrote for a history, and a line about its source; None if there is none."""
        return self._own.get(self._identity(choice, own))

    def _identity(self, choice: Choice, own: Sequence[tuple[int, float]]) -> tuple:
        run, layout = choice.run, self.finished.layout
        profiles = layout.run_profiles(run)
        # A repeated training changes the profiles, so their modification time is part of the key.
        return (run.dataset, profiles, _changed(self.finished.path(profiles)), run.seed, tuple(own))

    def write(
        self,
        choice: Choice,
        own: Sequence[tuple[int, float]],
        report: Callable[[str, int, int], None],
        gone: threading.Event,
    ) -> tuple[str, str]:
        """Write the profile of a history that was typed in, with the prompt, encoder and limits of a run.

        Args:
            own: items and ratings, oldest first.
            report: called with a stage (``waiting``, ``loading``, ``writing``), tokens so far and tokens at most.
            gone: writing stops once this is set.

        Returns:
            The profile, and a line about its source.

        Raises:
            UserError: the run has no encoder, its model cannot be read, or its prompt needs unknown fields.
            Cancelled: ``gone`` was set.
        """
        entry = self.finished.workflow.methods[self.finished.layout.source_of(choice.run.method)]
        if choice.kind != "profiles":
            raise UserError(f"{choice.label} writes no profile; choose a method of the group 'profiles'")
        while not self._writing.acquire(timeout=0.25):
            report("waiting", 0, entry.max_tokens)
            if gone.is_set():
                raise Cancelled
        try:
            out = self._write(choice, entry, own, report, gone)
        finally:
            self._writing.release()
        self._own[self._identity(choice, own)] = out
        if len(self._own) > TEXTS:
            self._own.popitem(last=False)
        return out

    def _write(
        self,
        choice: Choice,
        entry: ProfileMethod,
        own: Sequence[tuple[int, float]],
        report: Callable[[str, int, int], None],
        gone: threading.Event,
    ) -> tuple[str, str]:
        import torch

        from langptune.models.load import load_adapter, load_encoder, pick_device, pick_dtype
        from langptune.profiles.best_of import best_rows
        from langptune.profiles.generate import generate_batch
        from langptune.prompts import PromptWriter, encode_sessions

        workflow, layout, run = self.finished.workflow, self.finished.layout, choice.run
        name = encoder_of(run.models)
        encoder = workflow.models[name]
        folder = self.finished.path(layout.model_folder(name))
        adapters = layout.adapter_of(run.dataset, run.models, run.seed, layout.run_phase(run))
        adapter = self.finished.path(adapters[0]) if adapters else None
        if adapter is not None and not adapter.exists():
            raise UserError(f"{adapter}: the trained encoder is not there; rerun its training or choose another method")
        device = pick_device()
        dtype = pick_dtype(workflow.config.generation.dtype, device)

        def load() -> tuple[Any, int]:
            model, tokenizer = load_encoder(folder, device, dtype)
            if adapter is not None:
                model = load_adapter(model, adapter)
            return (model, tokenizer), _bytes(model)

        report("loading", 0, entry.max_tokens)
        with self._lock:
            model, tokenizer = self.kept.get(("encoder", folder, adapter, adapter and _changed(adapter)), load)
        # As in scripts/write_profiles.py.
        prompt = workflow.prompt_of(run.dataset, layout.source_of(run.method))
        limit = encoder.prompt_limit(entry.max_tokens)
        writer = PromptWriter(workflow.prompts[prompt], prompt, tokenizer, limit)
        items = self.finished.data(run.dataset).items
        history, ratings = [item for item, _ in own], [rating for _, rating in own]
        session = pl.DataFrame(
            {"user_id": [""], "history": [history], "ratings": [ratings], "reviews": [None]},
            schema={key: contracts.SESSIONS[key] for key in ("user_id", "history", "ratings", "reviews")},
        )
        no_users = pl.DataFrame(schema=contracts.USERS)
        (encoded,) = encode_sessions(writer, session, items, no_users, entry.history_items)
        tokens = 0

        def step(*_: object) -> None:
            nonlocal tokens
            if gone.is_set():
                raise Cancelled
            report("writing", tokens, entry.max_tokens)
            tokens += 1

        seeds = [profile_seed(run.seed, OWN, sample) for sample in range(entry.best_of)]
        hook = model.register_forward_pre_hook(step)
        try:
            with torch.autocast(device.type, dtype, enabled=adapter is not None and dtype != torch.float32):
                asked = [encoded.ids] * entry.best_of
                done = generate_batch(
                    model, tokenizer, asked, seeds, entry.max_tokens, entry.temperature, writer.starts
                )
        finally:
            hook.remove()
        kept = 0
        if len(done) > 1:
            with self._lock:
                decoder = self._decoder(choice)
                texts = [profile.text for profile in done]
                queries = embed_queries(decoder.model, texts, decoder.prefix, self._denials(choice)).vectors
                scores = decoder.scoring(self.weight(choice)).scores(queries)
            (kept,) = best_rows([scores], [history], [history], entry.history_items)
        profile = done[kept]
        ended = "ended by itself" if profile.finished else "cut at the limit"
        if profile.thought:
            ended += ", reasoning taken out" if profile.text else ": only reasoning"
        left_out = f"; {encoded.dropped_items} oldest titles did not fit" if encoded.dropped_items else ""
        return profile.text, f"{self.finished.writer(choice)}; {profile.tokens} tokens, {ended}{left_out}"


def _changed(path: Path) -> int:
    """A file's time of modification in nanoseconds; 0 if there is none."""
    return path.stat().st_mtime_ns if path.exists() else 0


def _bytes(model: Any) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())
