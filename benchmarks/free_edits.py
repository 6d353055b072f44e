"""Edits of profiles as people type them (``tests/free_edits.yaml``): the share that a decoder obeys.

Each edit is made in the same profiles. For every taste or title that should rise (or fall), the AUC of its items (the
chance that one ranks above another item) must be higher (or lower) than before the edit; an edit is obeyed in a profile
if this holds for all of them. Printed for every weight of denials in edited profiles, and for every weight of the
untrained decoder's reading: the share over edits and profiles, with a bootstrap interval over edits and profiles; the
share of edits that are obeyed in most profiles; and each edit's own.

    python benchmarks/free_edits.py --profiles results/.../profiles/test.parquet --data results/ml-100k/data
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import polars as pl

from langptune.config.base import read_yaml, validate
from langptune.config.models import DecoderEntry
from langptune.config.phases import DENIALS
from langptune.errors import UserError
from langptune.interpretability.steering import effect
from langptune.language.claims import title_key
from langptune.language.tastes import Tastes

if TYPE_CHECKING:
    from langptune.ranking.edited import CachedReader

ROOT = Path(__file__).parents[1]
EDITS = ROOT / "tests/free_edits.yaml"


@dataclass(frozen=True)
class FreeEdit:
    """One edit: what is typed, where, and what should rise and fall (names of tastes or titles)."""

    where: Literal["before", "after", "replace"]
    text: str
    up: tuple[str, ...] = ()
    down: tuple[str, ...] = ()
    plain: bool = False

    def applied(self, profile: str) -> str:
        """The edited profile."""
        if self.where == "replace":
            return self.text
        ended = self.text if self.text[-1] in ".!?" else f"{self.text}."
        return f"{ended} {profile}" if self.where == "before" else f"{profile} {self.text}"


def read_edits(path: Path = EDITS) -> list[FreeEdit]:
    """The edits of a file.

    Raises:
        UserError: an entry lacks a key, has an unknown one, or names nothing that should rise or fall.
    """
    out = []
    for at, entry in enumerate(read_yaml(path)["edits"], 1):
        try:
            edit = FreeEdit(**{key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()})
        except TypeError as error:
            raise UserError(f"{path}: entry {at}: {error}; the keys are listed at the top of the file") from None
        if edit.where not in ("before", "after", "replace") or not (edit.up or edit.down) or not edit.text:
            raise UserError(
                f"{path}: entry {at}: 'where' is before, after or replace; 'text' and 'up' or 'down' are needed"
            )
        out.append(edit)
    return out


def items_of(name: str, tastes: Tastes, titles: Sequence[str]) -> np.ndarray:
    """bool ``[N]``: the items that a taste's name, or a title, stands for.

    Raises:
        UserError: neither a taste nor a title of the catalogue.
    """
    if name in tastes.names:
        return tastes.has[:, tastes.names.index(name)]
    found = np.array([title_key(title) == title_key(name) for title in titles])
    if not found.any():
        raise UserError(f"{EDITS}: '{name}' is neither a taste nor a title of the catalogue; correct its spelling")
    return found


def obeyed(
    edits: Sequence[FreeEdit], before: np.ndarray, after: np.ndarray, tastes: Tastes, titles: Sequence[str]
) -> np.ndarray:
    """bool ``[E, P]``: whether each edit moves all that it names as it should, in each profile.

    Args:
        before: float ``[P, N]``, scores of the items by the profiles.
        after: float ``[E, P, N]``, by the edited profiles.
    """
    out = np.ones(after.shape[:2], dtype=bool)
    for at, edit in enumerate(edits):
        for names, sign in ((edit.up, 1), (edit.down, -1)):
            for has in (items_of(name, tastes, titles) for name in names):
                for row, (old, new) in enumerate(zip(before, after[at], strict=True)):
                    out[at, row] &= sign * effect(old, new, has, [])[0] > 0
    return out


def interval(found: np.ndarray, resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95% interval of the share: a bootstrap over edits and profiles. ``found``: bool ``[E, P]``."""
    rng = np.random.default_rng(seed)
    shares = [
        found[rng.integers(0, len(found), len(found))][:, rng.integers(0, found.shape[1], found.shape[1])].mean()
        for _ in range(resamples)
    ]
    low, high = np.quantile(shares, [0.025, 0.975])
    return float(low), float(high)


def reader_of(folder: Path, entry: DecoderEntry, item_texts: Sequence[str]) -> CachedReader:
    """The decoder in a model folder, with its vectors of the items."""
    from langptune.models.load import load_decoder, pick_device
    from langptune.ranking.decoder import embed_items
    from langptune.ranking.edited import CachedReader

    model = load_decoder(folder, entry, pick_device())
    return CachedReader(model, embed_items(model, item_texts, entry.item_prefix)[0], entry.query_prefix)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "results/ml-100k/data", help="folder with items.parquet")
    parser.add_argument("--profiles", type=Path, required=True, help="profiles.parquet of real users")
    parser.add_argument("--decoder", type=Path, default=ROOT / "results/models/minilm-l6", help="trained or not")
    parser.add_argument("--entry", default="minilm-l6", help="the decoder's entry in config/models.yaml")
    parser.add_argument("--untrained", type=Path, help="the untrained decoder; default: results/models/<entry>")
    parser.add_argument("--weights", type=float, nargs="+", default=[0.0], help="weights of its reading of edits")
    parser.add_argument(
        "--denials", type=float, nargs="+", default=DENIALS, help="weights of denials in edited profiles"
    )
    parser.add_argument("--count", type=int, default=20, help="number of profiles, the first ones")
    args = parser.parse_args()

    from langptune.data import contracts
    from langptune.language.tastes import tastes_of
    from langptune.ranking.edited import EditReader
    from langptune.ranking.queries import denials_of

    catalogue = contracts.read(args.data / "items.parquet", "items")
    profiles = (
        contracts.read(args.profiles, "profiles").filter(pl.col("sample") == 0)["profile"].head(args.count).to_list()
    )
    entry = validate(DecoderEntry, read_yaml(ROOT / "config/models.yaml")[args.entry], f"models.yaml: {args.entry}")
    texts_of_items = catalogue["text"].to_list()
    decoder, untrained = reader_of(args.decoder, entry, texts_of_items), None
    if any(args.weights):
        untrained = reader_of(args.untrained or ROOT / "results/models" / args.entry, entry, texts_of_items)
    tastes, titles, edits = tastes_of(catalogue, "genres"), catalogue["title"].to_list(), read_edits()
    texts = [edit.applied(profile) for edit in edits for profile in profiles]
    before = decoder.similarities(profiles, None)
    shown: dict[tuple[float, float], np.ndarray] = {}
    for weight in args.denials:
        denials = denials_of(catalogue, "genres", weight)
        for other in args.weights:
            reader = EditReader(decoder, None, denials, untrained if other else None, other)
            after = reader.edited(profiles * len(edits), texts).reshape(len(edits), len(profiles), -1)
            shown[weight, other] = obeyed(edits, before, after, tastes, titles)
    for (weight, other), found in shown.items():
        low, high = interval(found)
        parts = {
            "up": [not e.down for e in edits],
            "down": [not e.up for e in edits],
            "plain": [e.plain for e in edits],
        }
        rest = ", ".join(f"{name} {100 * found[np.array(rows)].mean():.0f}%" for name, rows in parts.items())
        most = 100 * (found.mean(axis=1) > 0.5).mean()
        share = f"{100 * found.mean():.1f}% [{100 * low:.1f}, {100 * high:.1f}]"
        print(f"denials {weight:g}, untrained {other:g}: obeyed {share}; {most:.0f}% of edits in most profiles; {rest}")
    for at, edit in enumerate(edits):
        print(" ".join(f"{100 * found[at].mean():4.0f}%" for found in shown.values()), edit.text)


if __name__ == "__main__":
    main()
