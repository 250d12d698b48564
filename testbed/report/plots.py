"""The plots of a report, as SVG images inside the page. matplotlib is imported only when one is drawn."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from testbed.ledger import RunRound

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette: told apart by colour-blind eyes and on grey prints.
COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
FAILED_COLOUR: Final = "#B00020"
_STYLE: Final = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a94a0",
    "axes.labelcolor": "#39424e",
    "xtick.color": "#39424e",
    "ytick.color": "#39424e",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e7ec",
    "legend.frameon": False,
    "svg.hashsalt": "fedpruneshare",
}


def accuracy_by_round(rounds: Sequence[RunRound], metric: str = "accuracy") -> str:
    """The metric of the global model after each round; failed rounds are crosses at the foot."""
    with _plot() as (axes, image):
        for colour, seed, lines in _by_seed(rounds):
            known = [(line.round, line.accuracy) for line in lines if line.accuracy is not None]
            axes.plot(*_columns(known), marker="o", markersize=3.5, color=colour, label=f"seed {seed}")
        failed = [line.round for line in rounds if line.phase == "FAILED"]
        if failed:
            foot = axes.get_ylim()[0]
            axes.plot(failed, [foot] * len(failed), "x", color=FAILED_COLOUR, label="failed round", clip_on=False)
        _finish(axes, "round", f"{metric} on the test set", rounds)
        _whole_rounds(axes)
    return image[0]


def accuracy_by_uplink(rounds: Sequence[RunRound], metric: str = "accuracy") -> str:
    """The metric against all bytes the devices had sent by then."""
    with _plot() as (axes, image):
        for colour, seed, lines in _by_seed(rounds):
            known = [(line.uplink_bytes_so_far / 1e6, line.accuracy) for line in lines if line.accuracy is not None]
            axes.plot(*_columns(known), marker="o", markersize=3.5, color=colour, label=f"seed {seed}")
        axes.set_xlim(left=0)
        _finish(axes, "uplink of all devices so far (MB of MQTT payload)", f"{metric} on the test set", rounds)
    return image[0]


def density_by_round(rounds: Sequence[RunRound]) -> str:
    """The kept share of the prunable weights after each round."""
    with _plot() as (axes, image):
        for colour, seed, lines in _by_seed(rounds):
            known = [(line.round, 100 * line.density) for line in lines if line.density is not None]
            axes.plot(*_columns(known), drawstyle="steps-mid", linewidth=2, color=colour, label=f"seed {seed}")
        axes.set_ylim(0, 105)
        _finish(axes, "round", "weights kept (%)", rounds)
        _whole_rounds(axes)
    return image[0]


def bytes_by_cause(rounds: Sequence[RunRound]) -> str:
    """What the devices sent and received in each round, stacked by cause; received bytes point down."""
    with _plot() as (axes, image):
        numbers = sorted({line.round for line in rounds if line.phase != "OUTSIDE"})
        sent = [(f"{cause}, sent", _sums(rounds, numbers, "up", cause)) for cause in ("shares", "resent", "control")]
        received = [
            (f"{cause}, received", [-value for value in _sums(rounds, numbers, "down", cause)])
            for cause in ("model", "plan", "receipts", "other")
        ]
        for causes, colours in ((sent, COLOURS[:3]), (received, (*COLOURS[3:], "#8a94a0"))):
            base = [0.0] * len(numbers)
            for (label, values), colour in zip(causes, colours, strict=True):
                axes.bar(numbers, values, bottom=base, color=colour, label=label, width=0.8)
                base = [below + value for below, value in zip(base, values, strict=True)]
        axes.axhline(0, color="#39424e", linewidth=0.8)
        axes.yaxis.set_major_formatter(lambda value, _position: f"{abs(value):g}")
        _finish(axes, "round", "MB of MQTT payload, all devices", ())
        _whole_rounds(axes)
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return image[0]


def _sums(rounds: Sequence[RunRound], numbers: Sequence[int], direction: str, cause: str) -> list[float]:
    """Megabytes by round, summed over seeds."""
    sums = dict.fromkeys(numbers, 0.0)
    for line in rounds:
        if line.round in sums:
            sums[line.round] += getattr(getattr(line, direction), cause) / 1e6
    return list(sums.values())


def _by_seed(rounds: Sequence[RunRound]) -> Iterator[tuple[str, int, list[RunRound]]]:
    for index, seed in enumerate(dict.fromkeys(line.seed for line in rounds)):
        lines = [line for line in rounds if line.seed == seed and line.phase != "OUTSIDE"]
        yield COLOURS[index % len(COLOURS)], seed, lines


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _finish(axes: Axes, x_label: str, y_label: str, rounds: Sequence[RunRound]) -> None:
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    several = len({line.seed for line in rounds}) > 1
    if several or any(line.phase == "FAILED" for line in rounds):
        axes.legend(fontsize=8)


def _whole_rounds(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


@contextmanager
def _plot() -> Iterator[tuple[Axes, list[str]]]:
    """Axes to draw on, and a list that holds the finished image's data URI afterwards."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    image: list[str] = []
    style: Any = _STYLE
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(6.2, 3.5), layout="constrained")
        FigureCanvasSVG(figure)
        yield figure.add_subplot(), image
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    image.append("data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode())
