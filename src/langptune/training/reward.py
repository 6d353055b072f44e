"""The reward of RLSO: a profile's reward from the frozen decoder, terms of form, and the combined objective.

``Reward.columns`` measures the profiles of one process. ``Reward.combine`` computes the objective from the columns of
the whole batch::

    R = r + sd(r) * sum over terms of (weight * term)

``r`` is the recipe's reward (``langptune.training.rewards``; by default NDCG without cut-off, PAPER: Training), sd its
standard deviation over the batch, and terms are those of ``langptune.training.terms``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from langptune.config.rewards import parse
from langptune.errors import UserError
from langptune.metrics import from_ranks
from langptune.randomness import stream
from langptune.ranking.queries import Denials, embed_queries
from langptune.ranking.ranks import flat_masks, target_ranks
from langptune.ranking.scoring import Scoring
from langptune.training.rewards import REWARDS, Contest, Reader
from langptune.training.terms import TERMS, EditTerm, Facts, Written

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from langptune.config.recipes import ReinforcementRecipe

BLOCK = 1 << 26
"""Limit on scores (profiles x items) in memory: 256 MiB in float32."""


@dataclass(frozen=True)
class Sessions:
    """The inputs and targets of the policy, one entry per session.

    prompts: token ids ``[S][*]``.
    targets: the target items ``[S]``.
    seen: the items that are excluded from ranks ``[S][*]``.
    futures: the user's next train targets, beginning with the session's own ``[S][1..m]``; for validation sessions only
        their target.
    histories: the items in the prompt ``[S][*]``.
    ratings: the user's ratings of these items; empty if unknown.
    users: the users of the sessions; empty if every session has another user.
    """

    sessions: list[int]
    prompts: list[list[int]]
    targets: list[int]
    seen: list[list[int]]
    futures: list[list[int]]
    histories: list[list[int]]
    ratings: list[list[float]] = field(default_factory=list)
    users: list[str] = field(default_factory=list)


def futures(sessions: pl.DataFrame, chosen: Sequence[int], count: int) -> list[list[int]]:
    """The next ``count`` train targets of each session's user, beginning with the session's own ``[S][1..count]``.

    Targets of validation and test are never used: rows of other splits are dropped first. Repeated items, and items
    that the session has seen, are left out.

    Args:
        sessions: contract ``sessions``; all its train sessions are used, whether chosen or not.
        chosen: train sessions.
    """
    train = sessions.filter(pl.col("split") == "train").sort("user_id", "target_time", "session")
    place = {session: at for at, session in enumerate(train["session"].to_list())}
    users, targets = train["user_id"].to_list(), train["target"].to_list()
    seen = dict(train.filter(pl.col("session").is_in(list(chosen))).select("session", "seen").iter_rows())
    out = []
    for session in chosen:
        at = start = place[session]
        known, own = set(seen[session]), []
        while at < len(users) and users[at] == users[start] and len(own) < count:
            if targets[at] not in known:
                own.append(targets[at])
                known.add(targets[at])
            at += 1
        out.append(own)
    return out


class Reward:
    """Ranks targets by texts with a frozen decoder, and converts ranks to rewards."""

    def __init__(
        self,
        decoder: SentenceTransformer,
        scoring: Scoring,
        prefix: str = "",
        recipe: ReinforcementRecipe | None = None,
        facts: Facts | None = None,
        limit: int = 0,
        reader: Reader | None = None,
        seed: int = 0,
        phase: str = "reinforcement-1",
        denials: Denials | None = None,
    ):
        """Set up a reward; without a recipe only ``ranks`` may be used.

        Args:
            scoring: scores of the catalogue by this decoder.
            prefix: the decoder's query prefix.
            facts: facts about the catalogue, for terms that need them.
            limit: limit on a profile in tokens, for the term ``length``.
            reader: for rewards from a language model.
            seed, phase: determine the random streams of ``shuffle_rewards`` and of terms.
            denials: how denials in texts count; None: texts are embedded whole.

        Raises:
            UserError: the recipe's reward or terms need facts, limit or reader, which are missing.
        """
        self._decoder, self._scoring, self._prefix, self._recipe = decoder, scoring, prefix, recipe
        self._facts, self._limit, self._reader = facts, limit, reader
        self._seed, self._phase, self._denials = seed, phase, denials
        if recipe is None:
            return
        parsed = {name: parse(name) for name in recipe.rewards}
        self._rewards = [(name, REWARDS[base], k, recipe.rewards[name]) for name, (base, _, k) in parsed.items()]
        self._reads = {kind.reads for _, kind, _ in parsed.values()}
        missing = {
            "the items": facts is None and any(TERMS[name].items for name in recipe.terms),
            "the longest profile": not limit and "length" in recipe.terms,
            "the initial encoder": reader is None and "reader" in self._reads,
        }
        for what, lacks in missing.items():
            if lacks:
                raise UserError(f"{recipe.title}: its reward or terms need {what}, which this caller does not give")

    def ranks(self, texts: Sequence[str], targets: Sequence[int], seen: Sequence[Sequence[int]]) -> np.ndarray:
        """int64 ``[B]``: the rank of each target by its text, without the items of ``seen``."""
        out = np.zeros(len(texts), dtype=np.int64)
        wanted = np.asarray(targets, dtype=np.int64)
        for part in self._blocks(len(texts)):
            scores = self._scores(texts[part])
            own = scores[np.arange(len(scores)), wanted[part]]
            out[part] = target_ranks(scores, own, _allowed(seen[part], scores.shape))
        return out

    def columns(
        self,
        texts: Sequence[str],
        sessions: Sessions,
        rows: Sequence[int],
        finished: np.ndarray,
        tokens: Sequence[int] | None = None,
    ) -> dict[str, np.ndarray]:
        """Rewards and terms of profiles, float64 ``[B]`` each.

        Args:
            texts: the profiles.
            rows: index of each profile's session.
            finished: bool ``[B]``, whether each profile ended by itself.
            tokens: length of each profile, for the term ``length``; None: unknown (unfinished profiles have the maximum
                length).

        Returns:
            ``reward``; each part of a weighted sum by its name; each of the recipe's terms by its name, including those
            of weight 0.
        """
        rewards = {name: np.zeros(len(texts)) for name, *_ in self._rewards}
        for part in self._blocks(len(texts)):
            for name, found in self._earned(texts[part], sessions, rows[part]).items():
                rewards[name][part] = found
        total = sum(weight * rewards[name] for name, *_, weight in self._rewards)
        if self._recipe.unfinished == "zero":
            total = np.where(finished, total, 0.0)
        written = [
            Written(
                text,
                bool(ended),
                (0 if ended else self._limit) if tokens is None else tokens[at],
                self._limit,
                sessions.histories[row],
                sessions.ratings[row] if sessions.ratings else (),
            )
            for at, (text, row, ended) in enumerate(zip(texts, rows, finished, strict=True))
        ]
        terms = {}
        for name in self._recipe.terms:
            term = TERMS[name]
            if isinstance(term, EditTerm):
                terms[name] = self._compared(term, texts, sessions, rows)
            else:
                terms[name] = np.array([term.value(one, self._facts) for one in written], dtype=np.float64)
        return {"reward": total} | (rewards if len(rewards) > 1 else {}) | terms

    def combine(self, columns: dict[str, np.ndarray], sessions: Sequence[int], batch: int = 0) -> np.ndarray:
        """The objective, float64 ``[B]``, from the columns of the whole batch (the module's formula).

        With ``shuffle_rewards`` each session first gets the rewards of another one. Terms stay with their profiles:
        only the relation between profile and user is shuffled, not the form of the text.

        Args:
            columns: columns of all processes, with a session's profiles adjacent; further columns are ignored.
            sessions: unique numbers of the batch's sessions in that order ``[S]``.
            batch: index of the batch in the phase, for ``shuffle_rewards``.
        """
        reward = columns["reward"]
        if self._recipe.shuffle_rewards:
            rng = stream(self._seed, self._phase, "dealt rewards", batch)
            reward = reward[dealt(sessions, self._recipe.samples, rng)]
        out = reward.astype(np.float64)
        spread = float(reward.std()) or 1.0  # if all rewards are equal, only the terms of form differ
        for name, weight in self._recipe.terms.items():
            if weight:
                out = out + spread * weight * columns[name]
        return out

    def _blocks(self, count: int) -> Iterator[slice]:
        """Slices of ``count`` profiles, each with at most ``BLOCK`` scores."""
        step = max(1, BLOCK // len(self._scoring.items.row_of_item))
        return (slice(start, start + step) for start in range(0, count, step))

    def _scores(self, texts: Sequence[str]) -> np.ndarray:
        return self._scoring.scores(embed_queries(self._decoder, texts, self._prefix, self._denials).vectors)

    def _compared(self, term: EditTerm, texts: Sequence[str], sessions: Sessions, rows: Sequence[int]) -> np.ndarray:
        """A term of profiles and the texts that it makes from them, float64 ``[B]``."""
        assert self._facts is not None
        made = {}
        for at, (text, row) in enumerate(zip(texts, rows, strict=True)):
            rng = stream(self._seed, self._phase, "edits of terms", sessions.sessions[row])
            if (edit := term.edit(text, self._facts, rng)) is not None:
                made[at] = edit
        has, edited, out = self._facts.catalogue.tastes.has, list(made), np.zeros(len(texts))
        for part in self._blocks(len(edited)):
            here = edited[part]
            before, after = self._scores([texts[at] for at in here]), self._scores([made[at][0] for at in here])
            for at, *scores in zip(here, before, after, strict=True):
                out[at] = term.value(*scores, has[:, made[at][1]], sessions.seen[rows[at]])
        return out

    def _earned(self, texts: Sequence[str], sessions: Sessions, rows: Sequence[int]) -> dict[str, np.ndarray]:
        """Each reward of the recipe, as the mean over the targets of each profile, float64 ``[B]``."""
        futures = [sessions.futures[row][: self._recipe.targets] for row in rows]
        scores = allowed = None
        if "scores" in self._reads:
            scores = self._scores(texts)
            # The targets of a session do not compete with each other.
            allowed = _allowed(
                [[*sessions.seen[row], *own] for row, own in zip(rows, futures, strict=True)], scores.shape
            )
        sums = {name: np.zeros(len(texts)) for name, *_ in self._rewards}
        for turn in range(max(map(len, futures))):
            here = np.array([at for at, own in enumerate(futures) if turn < len(own)])
            target = np.array([futures[at][turn] for at in here], dtype=np.int64)
            contest = Contest([texts[at] for at in here], target, reader=self._reader)
            if scores is not None:
                against = allowed[here]
                against[np.arange(len(here)), target] = True
                contest = Contest(contest.profiles, target, scores[here], against, self._reader)
            for name, value, k, _ in self._rewards:
                sums[name][here] += value(contest, k)
        count = np.array([len(own) for own in futures])
        return {name: total / count for name, total in sums.items()}


def _allowed(seen: Sequence[Sequence[int]], shape: tuple[int, ...]) -> np.ndarray:
    """bool ``[B, N]``, false at the seen items of each row."""
    out = np.ones(shape, dtype=bool)
    out[flat_masks(seen)] = False
    return out


def dealt(sessions: Sequence[int], samples: int, rng: np.random.Generator) -> np.ndarray:
    """int64 ``[S * samples]``: the index of the reward that each profile gets, from another session.

    The k-th profile of a session gets the reward of the k-th profile of the other session, so that the groups of
    rewards, and their distribution, do not change.

    Args:
        sessions: sessions of the groups ``[S]``, with repetitions.
        samples: profiles per group, adjacent.

    Raises:
        UserError: one session is more than half of the batch, so that no such permutation exists.
    """
    groups = np.asarray(sessions)
    names, counts = np.unique(groups, return_counts=True)
    if 2 * counts.max() > len(groups):
        raise UserError("shuffle_rewards: one session is more than half of a batch; raise sessions_per_batch")
    # Sorted by session in a random order, then rotated by the largest block: no session keeps its own.
    place = dict(zip(names.tolist(), rng.permutation(len(names)).tolist(), strict=True))
    shuffle = rng.permutation(len(groups))
    order = shuffle[np.argsort([place[session] for session in groups[shuffle].tolist()], kind="stable")]
    giver = np.empty(len(groups), dtype=np.int64)
    giver[order] = np.roll(order, -int(counts.max()))
    return (giver[:, None] * samples + np.arange(samples)).ravel()


def validation_metrics(ranks: np.ndarray) -> dict[str, float]:
    """Metrics of validation ranks, each with its standard error over sessions (``*_se``).

    ``ndcg`` without cut-off is used for selection; NDCG@10 and the mean of ln(rank) are for comparison.
    """
    measures = {name: from_ranks(name, ranks) for name in ("ndcg", "ndcg@10")} | {"log_rank": np.log(ranks)}
    out = {}
    for name, values in measures.items():
        out |= {name: float(values.mean()), f"{name}_se": standard_error(values)}
    return out


def standard_error(values: np.ndarray) -> float:
    """The standard error of a mean over sessions; 0 for a single session."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
