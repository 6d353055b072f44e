"""Shared by all figures: colours, matplotlib's settings, display of texts, and saving.

Figures are drawn without global state; the same data give the same bytes. Colours show the group of a method (Okabe and
Ito's palette, distinguishable with any colour vision); position, line style and text show everything else, so that the
figures are readable in greyscale.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from langptune.comparison.grid import GROUPS
from langptune.errors import UserError, printable
from langptune.files import whole

P = ParamSpec("P")
COLOURS = dict(zip(GROUPS, ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#767676"), strict=True))
OTHER = "#CC79A7"
DPI = 150
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "pdf.fonttype": 42,
    "figure.dpi": DPI,
}
METHODS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Colours for methods of one group, distinguishable with any colour vision. Their marks differ too."""
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
_METADATA = {".png": {"Software": None}, ".pdf": {"CreationDate": None, "Creator": None, "Producer": None}}
LONGEST = 200
"""Limits on a text in a figure: characters per line, and ``LINES`` lines. More would leave no room for the axes."""
LINES = 5


@contextmanager
def styled() -> Iterator[None]:
    """Apply the style of all figures while the block runs, independent of the user's matplotlibrc."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


def shown(text: str) -> str:
    """Text that matplotlib draws verbatim: dollar signs escaped, without control characters, of limited length."""
    lines = printable(text, "\n").replace("$", r"\$").split("\n")[:LINES]
    return "\n".join(line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…" for line in lines)


def of_texts(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Decorate a drawing function so that all texts among its arguments pass through ``shown``."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        return draw(*map(_shown, args), **{name: _shown(value) for name, value in kwargs.items()})

    return drawn


def _shown(value: Any) -> Any:
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, dict):
        return {_shown(key): _shown(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_shown(item) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        parts = {part.name: _shown(getattr(value, part.name)) for part in fields(value)}
        if str(parts.get("label", "")).startswith("_"):
            parts["label"] = f" {parts['label']}"  # matplotlib leaves such a label out of the legend
        return replace(value, **parts)
    return value


def save(figure: Figure, path: Path | str) -> None:
    """Write a PNG (150 dpi) or PDF, depending on the path's suffix, atomically and without a time stamp.

    Raises:
        UserError: the suffix is neither.
    """
    path = Path(path)
    if path.suffix not in _METADATA:
        raise UserError(f"{path}: figures are written as {' or '.join(_METADATA)}")
    with whole(path) as part, styled():
        figure.savefig(part, format=path.suffix[1:], dpi=DPI, metadata=_METADATA[path.suffix])


def new_figure(width: float, height: float) -> Figure:
    """A figure (in inches) with its own Agg canvas: no pyplot, no window, nothing to close."""
    figure = Figure(figsize=(width, height), layout="constrained", dpi=DPI)
    FigureCanvasAgg(figure)
    return figure


def row_height(labels: list[str]) -> float:
    """Height of a row in inches; labels of two lines need more."""
    return 0.36 if any("\n" in label for label in labels) else 0.24


def empty(sentence: str) -> Figure:
    """A figure that says why there is nothing to draw."""
    figure = new_figure(5.6, 1.2)
    figure.text(0.5, 0.5, sentence, ha="center", va="center")
    return figure


def group_legend(figure: Figure, present: list[str]) -> None:
    """Add a legend of the groups' colours above the axes."""
    groups = [group for group in dict.fromkeys([*GROUPS, *present]) if group in present]
    handles = [Patch(facecolor=COLOURS.get(group, OTHER), label=group) for group in groups]
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), handlelength=1.2)


def shade(colour: str, step: int) -> tuple[float, float, float]:
    """A lighter or darker variant for the second and third round of line styles within a group."""
    base = np.array(mpl.colors.to_rgb(colour))
    return tuple(base if step == 0 else base * 0.55 if step == 1 else base * 0.5 + 0.5)
