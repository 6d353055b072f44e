"""Does an encoder know a dataset by heart? Questions in the dataset's own format, and a control that no memory answers.

Three questions, each asked of many rows: the title that belongs to an item id, the other fields that belong to a title,
and the item that follows a user's last interactions (the test target). The idea is that of Di Palma et al. 2025 (arXiv
2505.10212), who ask for MovieLens-1M in this way and count exact answers.

The control is an invented row: the same answer after the beginning of another row. So an answer that is likely anywhere
(a short title, a popular item) counts the same on both sides. An encoder that knows nothing of the rows gives an answer
the same probability after its own beginning and after another one, on average.

Two limits. Whoever knows films knows the genres of a title, without knowing the dataset. And the rows that a question
shows can hint at the answer by themselves (a user's item ids may be near each other), so the last question bounds what
is remembered from above.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from langptune.randomness import numbered

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

KINDS = {
    "title": "title of an item id",
    "fields": "other fields of a title",
    "next": "next item of a user",
}
"""Questions and their names in tables."""

EXAMPLES = 5
"""Rows that a question on an item shows first, so that the format is clear."""

SCHEMA = {
    "kind": pl.String,
    "unit": pl.Int32,
    "nats": pl.Float64,
    "control_nats": pl.Float64,
    "exact": pl.Boolean,
    "control_exact": pl.Boolean,
}
"""Columns of an encoder's answers: ``unit`` is the item (``title``, ``fields``) or session (``next``); ``nats`` is the
mean log-probability per token after its own beginning, ``control_nats`` after that of another row; ``exact`` and
``control_exact`` say whether greedy decoding gives the answer there."""


@dataclass(frozen=True)
class Question:
    """The beginning of a row, its continuation, and the beginning of another row of the same kind.

    The answer includes the tab or line break that ends it: an id that only begins like the right one (127 for 12) is
    another answer.
    """

    kind: str
    unit: int
    prompt: str
    answer: str
    other_prompt: str = ""


def item_rows(items: pl.DataFrame) -> list[tuple[str, str, str]]:
    """Item id, title (with its year in brackets, where there is one) and other fields of each item.

    Args:
        items: contract ``items`` with the dataset's own fields.
    """
    own = [name for name in items.columns if name not in ("item", "item_id", "title", "text", "first_seen", "year")]
    rows = []
    for row in items.to_dicts():
        title = f"{row['title']} ({row['year']})" if row.get("year") else row["title"]
        rows.append((row["item_id"], title, "\t".join(str(row[name]) for name in own if row[name])))
    return rows


def questions(items: pl.DataFrame, sessions: pl.DataFrame, n_items: int, shown: int, seed: int) -> list[Question]:
    """The questions on ``n_items`` drawn items and on all given sessions.

    Args:
        items: contract ``items`` with the dataset's own fields.
        sessions: contract ``sessions``: those whose next item is asked for.
        shown: interactions of a user that the question on its next item shows.
        seed: of the draws.
    """
    rows, rng = item_rows(items), numbered(seed, 0)
    order = rng.permutation(len(rows)).tolist()
    examples, asked = order[:EXAMPLES], sorted(order[EXAMPLES : EXAMPLES + n_items])
    head = "".join("\t".join(filter(None, rows[item])) + "\n" for item in examples)
    chosen = [(at, *rows[at]) for at in asked]
    titles = [
        Question("title", at, f"{head}{name}\t", title + ("\t" if rest else "\n")) for at, name, title, rest in chosen
    ]
    fields = [
        Question("fields", at, f"{head}{name}\t{title}\t", f"{rest}\n") for at, name, title, rest in chosen if rest
    ]
    following = []
    for row in sessions.to_dicts():
        latest = list(zip(row["history"], row["ratings"], strict=True))[-shown:]
        lines = "".join(f"{row['user_id']}\t{rows[item][0]}\t{rating:g}\n" for item, rating in latest)
        prompt = f"{lines}{row['user_id']}\t"
        following.append(Question("next", row["session"], prompt, f"{rows[row['target']][0]}\t"))
    return [asked for kind in (titles, fields, following) for asked in _paired(kind, rng)]


def _paired(asked: list[Question], rng: np.random.Generator) -> list[Question]:
    """The questions with the beginnings of others: a rotation of a random order, so that none has its own."""
    if len(asked) < 2:
        return []
    order = rng.permutation(len(asked))
    giver = np.empty(len(asked), dtype=np.int64)
    giver[order] = np.roll(order, 1)
    return [replace(one, other_prompt=asked[other].prompt) for one, other in zip(asked, giver, strict=True)]


def answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: Sequence[Question], batch_size: int = 16
) -> pl.DataFrame:
    """How likely each answer is after its own and after another beginning (``SCHEMA``); a row per question."""
    from langptune.models.likelihood import likeliest

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids

    start = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    own = [[*start, *ids(one.prompt)] for one in asked]
    others = [[*start, *ids(one.other_prompt)] for one in asked]
    texts = [ids(one.answer) for one in asked]
    total, exact = likeliest(model, [*own, *others], [*texts, *texts], batch_size)
    nats = total / np.maximum(1, [len(text) for text in (*texts, *texts)])
    n = len(asked)
    return pl.DataFrame(
        {
            "kind": [one.kind for one in asked],
            "unit": [one.unit for one in asked],
            "nats": nats[:n],
            "control_nats": nats[n:],
            "exact": exact[:n],
            "control_exact": exact[n:],
        },
        schema=SCHEMA,
    )


TABLE = {
    "encoder": pl.String,
    "question": pl.String,
    "n": pl.Int64,
    "exact": pl.Float64,
    "control_exact": pl.Float64,
    "nats": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "p": pl.Float64,
}
GAINS = {
    "encoder": pl.String,
    "method": pl.String,
    "models": pl.String,
    "n": pl.Int64,
    "spearman": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
}


def table(found: dict[str, pl.DataFrame], resamples: int, confidence: float, seed: int) -> pl.DataFrame:
    """A row per encoder and question.

    Columns:
        n: number of rows asked for.
        exact, control_exact: share of answers that greedy decoding gives after their own and another beginning.
        nats, low, high: how much likelier an answer is after its own beginning (mean log-probability per token), with
            its bootstrap interval over the rows.
        p: sign-flip permutation test of this difference, Holm-corrected over all rows of the table.

    Args:
        found: encoder -> its answers.
    """
    from langptune.comparison.significance import holm, sign_flip

    rows = []
    for encoder, frame in found.items():
        for kind, name in KINDS.items():
            part = frame.filter(pl.col("kind") == kind)
            if part.is_empty():
                continue
            differences = (part["nats"] - part["control_nats"]).to_numpy()
            low, high = _interval(differences, resamples, confidence, seed)
            shares = {key: float(part[key].mean()) for key in ("exact", "control_exact")}
            rows.append(
                {"encoder": encoder, "question": name, "n": len(part), **shares}
                | {"nats": float(differences.mean()), "low": low, "high": high, "p": sign_flip(differences, seed)}
            )
    for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p"] = p
    return pl.DataFrame(rows, schema=TABLE)


def against_gains(
    found: dict[str, pl.DataFrame], gains: pl.DataFrame, resamples: int, confidence: float, seed: int
) -> pl.DataFrame:
    """Spearman correlation of what an encoder knows of a session with what its methods gain there.

    What it knows is how much likelier it finds the session's next item after this user's interactions than after those
    of another user. A clearly positive correlation says that the gain may be, in part, memory.

    Args:
        found: encoder -> its answers.
        gains: ``langptune.comparison.statistics.gains``; methods without a reference, or equal to it, are left out.
    """
    from scipy.stats import rankdata

    from langptune.comparison import bootstrap

    rows = []
    for encoder, frame in found.items():
        known = frame.filter(pl.col("kind") == "next").select(
            session="unit", memory=pl.col("nats") - pl.col("control_nats")
        )
        for (method, models), part in gains.group_by("method", "models", maintain_order=True):
            if models.split("+")[0] != encoder:
                continue
            joined = part.drop_nulls("rank_gain").join(known, on="session").sort("session")
            if len(joined) < 3 or any(joined[name].n_unique() < 2 for name in ("memory", "rank_gain")):
                continue
            pair = np.stack([rankdata(joined[name].to_numpy()) for name in ("memory", "rank_gain")])
            rng = numbered(seed, 2)
            draws = rng.integers(0, len(joined), (resamples, len(joined)))
            values = np.array([np.corrcoef(pair[:, draw])[0, 1] for draw in draws])
            low, high = bootstrap.interval(values[np.isfinite(values)], confidence)
            rows.append(
                {"encoder": encoder, "method": method, "models": models, "n": len(joined)}
                | {"spearman": float(np.corrcoef(pair)[0, 1]), "low": float(low), "high": float(high)}
            )
    return pl.DataFrame(rows, schema=GAINS)


def _interval(values: np.ndarray, resamples: int, confidence: float, seed: int) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean."""
    from langptune.comparison import bootstrap

    draws = numbered(seed, 1).integers(0, len(values), (resamples, len(values)))
    low, high = bootstrap.interval(values[draws].mean(axis=1), confidence)
    return float(low), float(high)


def page(title: str, known: pl.DataFrame, gains: pl.DataFrame, confidence: float, shown: int) -> str:
    """Both tables as a Markdown page."""
    from langptune.markup import markdown, table_row

    level = f"{100 * confidence:.4g}% interval"
    lines = [f"# What the encoders know of {markdown(title)} by heart", ""]
    head = ["encoder", "question", "n", "completed", "completed, invented rows"]
    head += [f"likelier, nats a token [{level}]", "p (Holm)"]
    lines += [table_row(head), "| --- | --- | ---: | ---: | ---: | ---: | ---: |"]
    for row in known.to_dicts():
        cells = [markdown(row["encoder"]), row["question"], str(row["n"])]
        cells += [f"{100 * row['exact']:.1f}%", f"{100 * row['control_exact']:.1f}%"]
        cells += [f"{row['nats']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]", f"{row['p']:.4f}"]
        lines.append(table_row(cells))
    lines += [
        "",
        "- Completed: greedy decoding gives the answer and ends it; invented rows: it does so after the beginning of "
        "another row.",
        "- Likelier: mean log-probability per token of the answer after its own beginning, less that after another "
        "row's. 0: nothing is known.",
        f"- Rows are shown as the dataset has them, separated by tabs: {EXAMPLES} other items before a question on an "
        f"item, the user's last {shown} interactions before one on its next item (the test target).",
        "- Fields of a title need no memory of the dataset: whoever knows the item knows them. A user's rows can hint "
        "at the next item by themselves (ids near each other), so that row is an upper bound.",
    ]
    if len(gains):
        lines += ["", "## Do users gain where the encoder knows their next item?", ""]
        lines += [f"| encoder | method | n | Spearman [{level}] |", "| --- | --- | ---: | ---: |"]
        for row in gains.to_dicts():
            cells = [markdown(row["encoder"]), markdown(row["method"]), str(row["n"])]
            cells.append(f"{row['spearman']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]")
            lines.append(table_row(cells))
        lines += ["", "- Gain: log2 of the rank, the comparison's reference less the method."]
    return "\n".join(lines) + "\n"
