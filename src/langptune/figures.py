"""Figures of a comparison, drawn without global state; the same data give the same bytes.

Colours say the group of a method (Okabe and Ito's palette, told apart with any colour vision); position, line
style and text say everything else, so that the figures also survive a grey printer.
"""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from langptune.comparison.grid import GROUPS
from langptune.errors import UserError, printable
from langptune.files import whole

P = ParamSpec("P")

COLOURS = dict(zip(GROUPS, ("#0072B2", "#E69F00", "#009E73", "#767676"), strict=True))
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
_METHODS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Methods of one group, told apart with any colour vision; their marks differ, too."""
_DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
_METADATA = {".png": {"Software": None}, ".pdf": {"CreationDate": None, "Creator": None, "Producer": None}}


@dataclass(frozen=True)
class Bar:
    """A row's mean with its interval on one metric.

    key: what makes a row: method and models. Two rows with one label stay two rows.
    label: what the figure calls it.
    """

    key: str
    label: str
    group: str
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Pair:
    """A published number beside our mean with its interval, on one metric; ``key`` and ``label`` as in ``Bar``."""

    key: str
    label: str
    group: str
    published: float
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Gain:
    """A method against the reference, per session (float64 ``[S]``).

    differences: of the main metric, above 0 where the method is better.
    rank_gains: log2 of how many times higher the target stands.
    """

    label: str
    group: str
    differences: np.ndarray
    rank_gains: np.ndarray


@dataclass(frozen=True)
class Difference:
    """A contrast on one metric: first method minus second, with its interval.

    key: what makes a row; label: what the figure calls it.
    better: +1 where a higher value of the metric is better, -1 where a lower one is.
    significant: after the correction over all contrasts of the metric.
    """

    key: str
    label: str
    difference: float
    low: float
    high: float
    better: int
    significant: bool


@dataclass(frozen=True)
class Ranks:
    """The ranks of a method's targets over sessions and seeds: int ``[S * R]``, 1-based."""

    label: str
    group: str
    ranks: np.ndarray


@dataclass(frozen=True)
class Training:
    """The curve of one trained phase: rows with ``batch``, ``val_ndcg``, its noise, and keys of ``TRAINING_PANELS``.

    key: curves with the same one are seeds of one phase.
    title: what the figure calls the phase.
    """

    key: str
    title: str
    rows: list[dict]


@dataclass(frozen=True)
class StudyLine:
    """One method of a study: a metric with its interval at each value."""

    label: str
    group: str
    values: list[float]
    means: list[float]
    low: list[float]
    high: list[float]


@dataclass(frozen=True)
class Curve:
    """How a trained method went: validation metric (float64 ``[E]``) by epoch (``[E]``).

    key: curves with the same one are seeds of one method.
    label: what the figure calls the method.
    """

    key: str
    label: str
    epochs: np.ndarray
    values: np.ndarray


@contextmanager
def styled() -> Iterator[None]:
    """The house style, undone on leaving, whatever the user's matplotlibrc says."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


LONGEST = 200
"""Characters of a line, and ``LINES`` lines of a text, that a figure shows: more would leave no room for its axes."""
LINES = 5


def shown(text: str) -> str:
    """Text as matplotlib draws it as it stands: no formula between dollar signs, no control characters, not endless."""
    lines = printable(text, "\n").replace("$", r"\$").split("\n")[:LINES]
    return "\n".join(line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…" for line in lines)


def of_texts(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """A function that draws, given every text among its arguments as it is ``shown``."""

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
    """Write a PNG (150 dpi) or PDF, by the path's suffix, whole or not at all and without a time stamp.

    Raises:
        UserError: any other suffix.
    """
    path = Path(path)
    if path.suffix not in _METADATA:
        raise UserError(f"{path}: figures are written as {' or '.join(_METADATA)}")
    with whole(path) as part, styled():
        figure.savefig(part, format=path.suffix[1:], dpi=DPI, metadata=_METADATA[path.suffix])


@of_texts
def bars(panels: dict[str, list[Bar]], better: int = 1) -> Figure:
    """Means with intervals, one panel per metric side by side, the best on top.

    Args:
        panels: metric's title -> bars. The first panel is sorted, the others follow its order. Bounds are
            told below the axes: an oracle at 1 would flatten everything else.
        better: +1 where a higher value of the first panel is better, -1 where a lower one is.
    """
    with styled():
        first = next(iter(panels.values()))
        shown = sorted((bar for bar in first if bar.group != "bounds"), key=lambda bar: (better * bar.mean, bar.label))
        if not shown:
            return _empty("Only bounds have run; there is no method to draw.")
        figure = _figure(5.6, 1.35 + _row_height([bar.label for bar in shown]) * len(shown))
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        place = {bar.key: at for at, bar in enumerate(shown)}
        notes = []
        for axis, (title, members) in zip(axes, panels.items(), strict=True):
            for bar in members:
                if bar.key not in place:
                    continue
                colour = COLOURS.get(bar.group, OTHER)
                axis.barh(place[bar.key], bar.mean, height=0.66, color=colour, alpha=0.85, linewidth=0)
                axis.plot([bar.low, bar.high], [place[bar.key]] * 2, color="black", linewidth=1.1)
            axis.set_title(title)
            axis.set_xlim(left=0)
            axis.margins(y=0.02)
            axis.locator_params(axis="x", nbins=4)
            axis.grid(axis="x", color="#dddddd", linewidth=0.6)
            axis.tick_params(axis="y", length=0)
            bounds = [bar for bar in members if bar.group == "bounds"]
            notes.append(f"{title}: " + ", ".join(f"{bar.label} {bar.mean:.4f}" for bar in bounds))
        axes[0].set_yticks(range(len(shown)), [bar.label for bar in shown])
        _group_legend(figure, [bar.group for bar in shown])
        if any(bar.group == "bounds" for bar in first):
            figure.supxlabel("Not drawn\n" + "\n".join(notes), fontsize=8, color="#444444")
        return figure


@of_texts
def published(panels: dict[str, list[Pair]]) -> Figure:
    """Published numbers beside ours: two dots and the line between them for each method, one panel per metric.

    Args:
        panels: metric's title -> pairs. Rows are in the order of the published numbers, each method's by the first
            metric that has one; where a method has no pair, its row of the panel is empty.
    """
    with styled():
        known = {pair.key: pair for members in reversed(panels.values()) for pair in members}
        shown = sorted(known.values(), key=lambda pair: (pair.published, pair.label))
        if not shown:
            return _empty("No published number stands beside a method that has run.")
        figure = _figure(5.6, 1.45 + _row_height([pair.label for pair in shown]) * len(shown))
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        place = {pair.key: at for at, pair in enumerate(shown)}
        for axis, (title, members) in zip(axes, panels.items(), strict=True):
            for pair in members:
                at, colour = place[pair.key], COLOURS.get(pair.group, OTHER)
                axis.plot([pair.published, pair.mean], [at, at], color=colour, linewidth=3, alpha=0.35)
                axis.plot([pair.low, pair.high], [at, at], color="black", linewidth=1.1)
                # Over the axis, not cut by it: chance lies next to zero.
                dot = {"marker": "o", "markersize": 5, "markeredgecolor": colour, "clip_on": False, "zorder": 3}
                axis.plot(pair.mean, at, color=colour, **dot)
                axis.plot(pair.published, at, color="white", **dot)
            axis.set_title(title)
            axis.set_xlim(left=0)
            axis.set_ylim(-0.6, len(shown) - 0.4)
            axis.locator_params(axis="x", nbins=4)
            axis.grid(axis="x", color="#dddddd", linewidth=0.6)
            axis.tick_params(axis="y", length=0)
        axes[0].set_yticks(range(len(shown)), [pair.label for pair in shown])
        told = "open: published, one number without interval\nfilled: ours, with its interval"
        figure.supxlabel(told, fontsize=8, color="#444444")
        _group_legend(figure, [pair.group for pair in shown])
        return figure


@of_texts
def gains(methods: list[Gain], reference: str, metric: str) -> Figure:
    """Who gains over the reference: shares of sessions won and lost, and how far the targets' ranks moved.

    A top-k metric is zero for most sessions under both methods, so its differences are nearly all zero: the
    left panel counts them, the right panel shows what the metric cannot see, the move of every target's rank.

    Args:
        methods: in any order; drawn by the balance of wins and losses. Bounds are left out.
        reference: how the reference is called.
        metric: the metric's title.
    """
    with styled():
        shown = sorted(
            (method for method in methods if method.group != "bounds"),
            key=lambda m: (float(np.sign(m.differences).mean()), float(np.median(m.rank_gains)), m.label),
        )
        if not shown:
            return _empty("No method besides the reference has run.")
        figure = _figure(5.6, 1.5 + _row_height([method.label for method in shown]) * len(shown))
        left, right = figure.subplots(1, 2, sharey=True)
        for at, method in enumerate(shown):
            won = 100 * float((method.differences > 0).mean())
            lost = 100 * float((method.differences < 0).mean())
            colour = COLOURS.get(method.group, OTHER)
            left.barh(at, won, height=0.66, color=colour, linewidth=0)
            left.barh(at, -lost, height=0.66, facecolor="white", edgecolor=colour, hatch="//////", linewidth=0.8)
            tail, quarter, middle, three, top = np.quantile(method.rank_gains, [0.05, 0.25, 0.5, 0.75, 0.95])
            right.plot([tail, top], [at, at], color=colour, linewidth=1.2)
            right.plot([quarter, three], [at, at], color=colour, linewidth=5.5, solid_capstyle="butt")
            right.plot(middle, at, marker="o", markersize=4.5, color="white", markeredgecolor="black")
        left.xaxis.set_major_locator(mpl.ticker.MaxNLocator(5))
        left.xaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
        left.set_title(f"Sessions by {metric}")
        left.set_xlabel("% worse  |  % better", fontsize=8)
        left.set_yticks(range(len(shown)), [method.label for method in shown])
        right.set_title("Target's place in the list")
        right.xaxis.set_major_locator(mpl.ticker.MaxNLocator(6, integer=True))
        right.xaxis.set_major_formatter(lambda doublings, _: f"{'÷' if doublings < 0 else '×'}{2 ** abs(doublings):g}")
        right.set_xlabel("times lower  |  times higher", fontsize=8)
        for axis in (left, right):
            axis.axvline(0, color="black", linewidth=0.8)
            axis.grid(axis="x", color="#dddddd", linewidth=0.6)
            axis.tick_params(axis="y", length=0)
            axis.set_ylim(-0.6, len(shown) - 0.4)
        against = " ".join(reference.split())
        figure.supxlabel(
            f"Against {against}\nbars: 25 to 75%, lines: 5 to 95% of sessions", fontsize=8, color="#444444"
        )
        _group_legend(figure, [method.group for method in shown])
        return figure


@of_texts
def contrasts(panels: dict[str, list[Difference]]) -> Figure:
    """Differences of pairs of methods with intervals around a line at 0, one panel per metric side by side.

    Args:
        panels: metric's title -> one per contrast that has run, in the order to be drawn from the top. The axis of a
            metric by which lower is better is turned over, so that better always lies to the right.
    """
    with styled():
        rows = {one.key: one.label for members in panels.values() for one in members}
        if not rows:
            return _empty("No contrast has both of its methods run.")
        labels, place = list(rows.values()), {key: at for at, key in enumerate(rows)}
        lines = max(label.count("\n") + 1 for label in labels)
        longest = max(len(line) for label in labels for line in label.splitlines())
        # A letter of a label takes about 0.065 inches; panels keep their width whatever the labels take.
        figure = _figure(0.065 * longest + 1.9 * len(panels), 1.3 + (0.12 + 0.14 * lines) * len(labels))
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        colour = _METHODS[0]
        for axis, (title, members) in zip(axes, panels.items(), strict=True):
            for one in members:
                at = place[one.key]
                axis.plot([one.low, one.high], [at, at], color=colour, linewidth=1.4)
                fill = colour if one.significant else "white"
                axis.plot(one.difference, at, marker="o", markersize=5, color=fill, markeredgecolor=colour)
            axis.axvline(0, color="black", linewidth=0.8)
            axis.set_title(title.replace(" (", "\n("))
            axis.margins(x=0.1)
            axis.locator_params(axis="x", nbins=4)
            axis.grid(axis="x", color="#dddddd", linewidth=0.6)
            axis.tick_params(axis="y", length=0)
            axis.set_ylim(len(labels) - 0.4, -0.6)
            if members and members[0].better < 0:
                axis.invert_xaxis()
        axes[0].set_yticks(range(len(labels)), labels)
        told = "to the right: the first method is better\nfilled: significant after Holm's correction"
        figure.supxlabel(told, fontsize=8, color="#444444")
        return figure


@of_texts
def rank_distributions(methods: list[Ranks], n_items: int) -> Figure:
    """The share of sessions whose target ranks at or above each rank: Recall@k at every k at once.

    Args:
        methods: drawn and listed by the share within the first ten; bounds are left out, for chance is the
            dotted curve ``rank / n_items`` (a diagonal on linear axes) and an oracle is the upper edge.
        n_items: size of the catalogue.
    """
    with styled():
        shown = sorted(
            (method for method in methods if method.group != "bounds"),
            key=lambda m: (-float((m.ranks <= 10).mean()), -float(np.mean(1.0 / m.ranks)), m.label),
        )
        figure = _figure(5.6, max(3.2, 0.9 + 0.2 * (len(shown) + 1)))
        axis = figure.subplots()
        at = np.unique(np.round(np.geomspace(1, n_items, 400)).astype(int))
        handles = []
        used = dict.fromkeys(COLOURS, 0)
        for method in shown:
            share = np.searchsorted(np.sort(method.ranks), at, side="right") / len(method.ranks)
            turn = used.get(method.group, 0)
            used[method.group] = turn + 1
            look = {
                "color": _shade(COLOURS.get(method.group, OTHER), turn // len(_DASHES)),
                "linestyle": _DASHES[turn % len(_DASHES)],
                "linewidth": 1.5,
            }
            axis.plot(at, share, drawstyle="steps-post", **look)
            handles.append(Line2D([], [], label=method.label, **look))
        chance = {"color": COLOURS["bounds"], "linestyle": (0, (1, 2)), "linewidth": 1.2}
        axis.plot(at, at / n_items, **chance)
        handles.append(Line2D([], [], label="chance", **chance))
        axis.axvline(10, color="#bbbbbb", linewidth=0.8, zorder=0)
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_xlim(1, n_items)
        axis.set_ylim(0, 1)
        axis.set_xlabel(f"rank (of {n_items} items)")
        axis.set_ylabel("share of sessions at or above")
        axis.grid(color="#e5e5e5", linewidth=0.6)
        figure.legend(handles=handles, loc="outside right center", handlelength=2.6)
        return figure


@of_texts
def learning_curves(curves: list[Curve], metric: str) -> Figure:
    """Validation metric by epoch, one small panel per method, so that long and short trainings stay readable.

    Args:
        curves: curves that share a key (seeds of one method) share a panel; dots are best epochs.
        metric: the metric's title.
    """
    with styled():
        panels: dict[str, list[Curve]] = {}
        for curve in curves:
            panels.setdefault(curve.key, []).append(curve)
        if not panels:
            return _empty("No trained method in this run has a learning curve.")
        columns = min(3, len(panels))
        rows = -(-len(panels) // columns)
        figure = _figure(max(2.6, 1.87 * columns), 0.5 + 1.5 * rows)
        axes = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
        for axis, members in zip(axes, panels.values(), strict=False):
            for turn, curve in enumerate(members):
                axis.plot(
                    curve.epochs,
                    curve.values,
                    color=COLOURS["baselines"],
                    linestyle=_DASHES[turn % len(_DASHES)],
                    linewidth=1.1,
                )
                best = int(np.argmax(curve.values))
                axis.plot(curve.epochs[best], curve.values[best], "o", markersize=3.5, color="black")
            axis.set_title(members[0].label, fontsize=8)
            axis.xaxis.set_major_locator(mpl.ticker.MaxNLocator(4, integer=True))
            axis.grid(color="#e5e5e5", linewidth=0.6)
        axes[0].set_ylim(bottom=0)
        for axis in axes[len(panels) :]:
            axis.set_visible(False)
        figure.supxlabel("epoch", fontsize=8)
        figure.supylabel(f"{metric} on validation", fontsize=8)
        return figure


TRAINING_PANELS = {
    "loss": "loss",
    "reward": "reward",
    "entropy": "entropy, nats a token",
    "kl": "KL to the start",
    "val_gain": "gain in log rank",
    "val_own": "own over shuffled",
    "val_finished": "share finished",
    "val_distinct": "share distinct",
    "val_repetition": "repetition",
    "val_tokens": "tokens",
}
"""Keys of a phase's ``curve.jsonl`` that are drawn beside validation NDCG, and what the panels are called."""
TRAINING_BANDS = {"val_gain": "val_gain_se", "val_own": "val_own_se"}
"""Panels with a line at 0 and, of a single seed, an interval of two standard errors."""
TRAINING_COLUMNS = 5


@of_texts
def funnel(steps: pl.DataFrame, title: str) -> Figure:
    """What each step of a protocol left, with published counts as hollow marks.

    Args:
        steps: columns step, and interactions, users, items with their ``_published``; empty cells are not drawn.
    """
    counts = {"interactions": "#0072B2", "users": "#D55E00", "items": "#009E73"}
    with styled():
        figure = _figure(5.6, 0.9 + 0.24 * len(steps))
        axis = figure.subplots()
        at = np.arange(len(steps))
        handles = []
        for name, colour in counts.items():
            ours = steps[name].cast(pl.Float64).to_numpy()
            theirs = steps[f"{name}_published"].cast(pl.Float64).to_numpy()
            axis.plot(ours, at, marker="o", markersize=5, linestyle="none", color=colour)
            handles.append(Line2D([], [], label=name, marker="o", markersize=5, linestyle="none", color=colour))
            if not np.isnan(theirs).all():
                axis.plot(theirs, at, marker="o", markersize=9, linestyle="none", color=colour, fillstyle="none")
                handles.append(
                    Line2D(
                        [],
                        [],
                        label=f"{name}, published",
                        marker="o",
                        markersize=7,
                        linestyle="none",
                        color=colour,
                        fillstyle="none",
                    )
                )
        axis.set_xscale("log")
        axis.set_yticks(at, steps["step"].to_list())
        axis.invert_yaxis()
        axis.set_xlabel("left after the step")
        axis.set_title(title)
        axis.grid(color="#e5e5e5", linewidth=0.6)
        figure.legend(handles=handles, loc="outside right center")
        return figure


@of_texts
def training(phases: list[Training]) -> Figure:
    """How training went, a block per phase: validation NDCG large, the other measures in small panels beside it.

    The grey band around NDCG at the start is the noise of validation: two standard errors of the paired difference to
    the start. What stays within it is no progress. Seeds are drawn as a band from the lowest to the highest around
    their mean; a single seed's gain and advantage have intervals of two standard errors. A cross marks where a seed was
    stopped because it had collapsed; its best state before is kept.

    Args:
        phases: curves with the same key are seeds of one phase.
    """
    with styled():
        by_key: dict[str, list[Training]] = {}
        for phase in phases:
            by_key.setdefault(phase.key, []).append(phase)
        if not by_key:
            return _empty("No method of this comparison is trained by LangPTune.")
        shown = [
            [key for key in TRAINING_PANELS if any(row.get(key) is not None for one in seeds for row in one.rows)]
            for seeds in by_key.values()
        ]
        lines = [max(1, -(-len(keys) // TRAINING_COLUMNS)) for keys in shown]
        heights = [0.5 + max(1.7, 1.15 * count) for count in lines]
        figure = _figure(9.6, sum(heights))
        blocks = np.atleast_1d(figure.subfigures(len(by_key), 1, height_ratios=heights))
        for block, seeds, keys, count in zip(blocks, by_key.values(), shown, lines, strict=True):
            block.suptitle(textwrap.shorten(seeds[0].title, 110, placeholder=" ..."), x=0.01, ha="left", fontsize=9)
            cells = block.add_gridspec(count, TRAINING_COLUMNS + 2)
            large = block.add_subplot(cells[:, :2])
            _band(large, [_points(phase.rows, "val_ndcg") for phase in seeds])
            large.set_title("validation NDCG", fontsize=8)
            large.set_xlabel("batch", fontsize=7)
            _noise(large, [phase.rows for phase in seeds])
            for row in (row for phase in seeds for row in phase.rows if row.get("collapsed")):
                large.plot(row["batch"], row["val_ndcg"], marker="x", markersize=7, color="black", linestyle="none")
                large.annotate("collapsed", (row["batch"], row["val_ndcg"]), fontsize=6, ha="right", va="bottom")
            for at, key in enumerate(keys):
                axis = block.add_subplot(cells[at // TRAINING_COLUMNS, 2 + at % TRAINING_COLUMNS])
                _band(axis, [_points(phase.rows, key) for phase in seeds])
                axis.set_title(TRAINING_PANELS[key], fontsize=7)
                if key in TRAINING_BANDS:
                    axis.axhline(0, color="black", linewidth=0.6)
                    if len(seeds) == 1:
                        _interval(axis, seeds[0].rows, key, TRAINING_BANDS[key])
        return figure


def _noise(axis: Axes, seeds: list[list[dict]]) -> None:
    """The band in which a difference to the start's NDCG is noise, by batch, mean over seeds."""
    errors = [_points(rows, "val_ndcg_gain_se") for rows in seeds]
    at = sorted({batch for seed in errors for batch in seed})
    starts = [rows[0]["val_ndcg"] for rows in seeds if rows and rows[0].get("val_ndcg") is not None]
    if not at or not starts:
        return
    start = float(np.mean(starts))
    error = np.array([0.0, *(np.mean([seed[batch] for seed in errors if batch in seed]) for batch in at)])
    axis.fill_between(
        [0, *at], start - 2 * error, start + 2 * error, color="#bbbbbb", alpha=0.5, linewidth=0, zorder=0.5
    )
    axis.axhline(start, color="#666666", linewidth=0.8, linestyle=(0, (4, 2)), zorder=0.6)
    axis.annotate("noise", (at[-1], start - 2 * error[-1]), fontsize=6, color="#444444", ha="right", va="bottom")


def _interval(axis: Axes, rows: list[dict], key: str, error: str) -> None:
    """Two standard errors around one seed's line."""
    told = [row for row in rows if row.get(key) is not None and row.get(error) is not None]
    mean, spread = (np.array([row[name] for row in told]) for name in (key, error))
    at = [row["batch"] for row in told]
    if len(at) == 1:  # a band of one point would not be seen
        axis.errorbar(at, mean, 2 * spread, color=COLOURS["profiles"], linewidth=1.2, capsize=2)
        return
    axis.fill_between(at, mean - 2 * spread, mean + 2 * spread, color=COLOURS["profiles"], alpha=0.2, linewidth=0)


@of_texts
def study(lines: list[StudyLine], key: str, metric: str, logarithmic: bool) -> Figure:
    """One metric over the values of one key, a line with its interval per method.

    Args:
        key: what varies, for the axis.
        metric: the metric's title.
    """
    with styled():
        figure = _figure(4.2, 3.0)
        axis = figure.subplots()
        for turn, line in enumerate(lines):
            look = {"color": _shade(COLOURS.get(line.group, OTHER), turn), "linestyle": _DASHES[turn % len(_DASHES)]}
            axis.plot(line.values, line.means, marker="o", markersize=3.5, linewidth=1.4, label=line.label, **look)
            axis.fill_between(line.values, line.low, line.high, color=look["color"], alpha=0.15, linewidth=0)
        if logarithmic:
            axis.set_xscale("log")
        ticks = sorted({value for line in lines for value in line.values})
        axis.set_xticks(ticks, [f"{value:g}" for value in ticks])
        axis.minorticks_off()
        axis.set_xlabel(key)
        axis.set_ylabel(metric)
        axis.set_ylim(bottom=0)
        axis.grid(color="#e5e5e5", linewidth=0.6)
        figure.legend(loc="outside upper center", fontsize=8)
        return figure


@of_texts
def variants(panels: dict[str, list[Bar]], lines: dict[str, float], metric: str) -> Figure:
    """Means of variants as points with their intervals, a panel for each value of one varied key.

    Args:
        panels: what the panel is called -> its variants, in the order to be drawn from the top.
        lines: label -> mean of a method that is not varied, drawn through all panels.
        metric: the metric's title.
    """
    with styled():
        rows = {bar.key: bar.label for members in panels.values() for bar in members}
        labels, place = list(rows.values()), {key: at for at, key in enumerate(rows)}
        height = 1.1 + _row_height(labels) * len(labels) + 0.16 * len(lines)
        figure = _figure(2.2 + 2.1 * len(panels), height)
        axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
        for axis, (title, members) in zip(axes, panels.items(), strict=True):
            for turn, (label, value) in enumerate(lines.items()):
                style = {"color": "#444444", "linestyle": _DASHES[(turn + 1) % len(_DASHES)], "linewidth": 1.0}
                axis.axvline(value, label=label if axis is axes[0] else None, **style)
            for bar in members:
                at, colour = place[bar.key], COLOURS.get(bar.group, OTHER)
                axis.plot([bar.low, bar.high], [at, at], color=colour, linewidth=1.4)
                axis.plot(bar.mean, at, marker="o", markersize=4.5, color=colour)
            axis.set_title(title)
            axis.locator_params(axis="x", nbins=4)
            axis.grid(axis="x", color="#dddddd", linewidth=0.6)
            axis.tick_params(axis="y", length=0)
            axis.set_ylim(len(labels) - 0.4, -0.6)
        axes[0].set_yticks(range(len(labels)), labels)
        figure.supxlabel(metric, fontsize=8, color="#444444")
        if lines:
            figure.legend(loc="outside upper right", fontsize=8)
        return figure


@of_texts
def models_grid(panels: list[tuple[str, list[str], list[str], np.ndarray]], metric: str) -> Figure:
    """A metric over pairs of encoder and decoder, one panel per method.

    Args:
        panels: of each method its label, encoders (rows), decoders (columns), means ``[E, D]`` (NaN where not run).
    """
    with styled():
        figure = _figure(2.6 * len(panels) + 1.2, 2.4)
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        top = max(float(np.nanmax(values)) for *_, values in panels)
        for axis, (label, encoders, decoders, values) in zip(axes, panels, strict=True):
            axis.imshow(values, cmap="Blues", vmin=0, vmax=top, aspect="auto")
            axis.set_xticks(range(len(decoders)), decoders, rotation=20, ha="right")
            axis.set_yticks(range(len(encoders)), encoders)
            axis.set_title(label)
            for (row, column), value in np.ndenumerate(values):
                dark = np.isfinite(value) and value > 0.6 * top
                text = f"{value:.4f}" if np.isfinite(value) else "-"
                axis.text(column, row, text, ha="center", va="center", color="white" if dark else "black", fontsize=8)
        figure.supxlabel(metric, fontsize=8)
        return figure


@of_texts
def tradeoff(accuracy: list[Bar], panels: dict[str, list[Bar]], metric: str, better: int = 1) -> Figure:
    """Accuracy (better upwards) against other measures (sideways, one panel each), a cross of intervals per method.

    Args:
        accuracy: one per method.
        panels: measure's title -> one per method; methods without a value are not drawn.
        metric: title of the accuracy.
        better: +1 where a higher accuracy is better, -1 where a lower one is: then its axis is turned over.
    """
    with styled():
        figure = _figure(2.7 * len(panels) + 0.4, 3.1)
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        marks = ("o", "s", "D", "^", "v", "P", "X", "*", "<", ">")
        looks = {bar.key: (_METHODS[at % len(_METHODS)], marks[at % len(marks)]) for at, bar in enumerate(accuracy)}
        heights = {bar.key: bar for bar in accuracy}
        for axis, (title, members) in zip(axes, panels.items(), strict=True):
            for bar in members:
                up, (colour, mark) = heights[bar.key], looks[bar.key]
                axis.plot([bar.low, bar.high], [up.mean] * 2, color=colour, linewidth=1.0, alpha=0.7)
                axis.plot([bar.mean] * 2, [up.low, up.high], color=colour, linewidth=1.0, alpha=0.7)
                axis.plot(bar.mean, up.mean, marker=mark, color=colour, markersize=6, markeredgecolor="white")
            axis.set_title(title, fontsize=8)
            axis.grid(color="#e5e5e5", linewidth=0.6)
            axis.locator_params(axis="x", nbins=5)
        axes[0].set_ylabel(metric)
        axes[0].margins(y=0.1)  # an interval at 0 would hide behind the axis
        if better < 0:
            axes[0].invert_yaxis()
        handles = [
            Line2D([], [], label=heights[key].label, color=colour, marker=mark, linestyle="none", markersize=6)
            for key, (colour, mark) in looks.items()
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(3, len(handles)))
        return figure


@of_texts
def intervals(panels: dict[str, list[Bar]], measure: str) -> Figure:
    """Means as points with their intervals around a line at 0, one panel side by side for each of several conditions.

    Args:
        panels: condition -> one per method, in the order to be drawn from the top.
        measure: what is on the axis.
    """
    with styled():
        rows = {bar.key: bar.label for members in panels.values() for bar in members}
        if not rows:
            return _empty("Nothing could be edited.")
        labels, place = list(rows.values()), {key: at for at, key in enumerate(rows)}
        figure = _figure(6.4, 1.0 + _row_height(labels) * len(labels))
        axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
        for axis, (title, members) in zip(axes, panels.items(), strict=True):
            for bar in members:
                at, colour = place[bar.key], COLOURS.get(bar.group, OTHER)
                axis.plot([bar.low, bar.high], [at, at], color=colour, linewidth=1.4)
                axis.plot(bar.mean, at, marker="o", markersize=4.5, color=colour)
            axis.axvline(0, color="black", linewidth=0.8)
            axis.set_title(title)
            axis.locator_params(axis="x", nbins=3)
            axis.grid(axis="x", color="#dddddd", linewidth=0.6)
            axis.tick_params(axis="y", length=0)
            axis.set_ylim(len(labels) - 0.4, -0.6)
        axes[0].set_yticks(range(len(labels)), labels)
        figure.supxlabel(measure, fontsize=8, color="#444444")
        return figure


def _points(rows: list[dict], key: str) -> dict[float, float]:
    return {row["batch"]: row[key] for row in rows if row.get(key) is not None}


def _band(axis: Axes, seeds: list[dict[float, float]]) -> None:
    at = sorted({batch for seed in seeds for batch in seed})
    axis.grid(color="#e5e5e5", linewidth=0.6)
    axis.tick_params(labelsize=7)
    axis.xaxis.set_major_locator(mpl.ticker.MaxNLocator(3, integer=True))
    axis.yaxis.set_major_locator(mpl.ticker.MaxNLocator(4))
    if not at:
        axis.set_visible(False)
        return
    columns = [[seed[batch] for seed in seeds if batch in seed] for batch in at]
    marker = "o" if len(at) <= 30 else None  # more would hide the line
    axis.plot(at, [np.mean(c) for c in columns], color=COLOURS["profiles"], linewidth=1.2, marker=marker, markersize=2)
    if len(seeds) > 1:
        low, high = [min(c) for c in columns], [max(c) for c in columns]
        axis.fill_between(at, low, high, color=COLOURS["profiles"], alpha=0.2, linewidth=0)


def _figure(width: float, height: float) -> Figure:
    """A figure (inches) with an Agg canvas of its own: no pyplot, no window, nothing to close."""
    figure = Figure(figsize=(width, height), layout="constrained", dpi=DPI)
    FigureCanvasAgg(figure)
    return figure


def _row_height(labels: list[str]) -> float:
    """Inches of a bar's row; labels of two lines need more."""
    return 0.36 if any("\n" in label for label in labels) else 0.24


def _empty(sentence: str) -> Figure:
    figure = _figure(5.6, 1.2)
    figure.text(0.5, 0.5, sentence, ha="center", va="center")
    return figure


def _group_legend(figure: Figure, present: list[str]) -> None:
    groups = [group for group in dict.fromkeys([*GROUPS, *present]) if group in present]
    handles = [Patch(facecolor=COLOURS.get(group, OTHER), label=group) for group in groups]
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), handlelength=1.2)


def _shade(colour: str, step: int) -> tuple[float, float, float]:
    """A lighter or darker variant for the second and third round of line styles within a group."""
    base = np.array(mpl.colors.to_rgb(colour))
    return tuple(base if step == 0 else base * 0.55 if step == 1 else base * 0.5 + 0.5)
