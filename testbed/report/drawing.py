"""How a plot is made: one style, one palette, and the SVG and PNG of it. matplotlib is imported only for a drawing."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart by colour-blind eyes and on grey prints.
COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#6b7280")
MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X", "*")
FAILED_COLOUR: Final = "#b00020"
INK, EDGE, GRID, PALE = "#39424e", "#8a94a0", "#e3e7ec", "#c3cad3"
#: Shades of one colour, for parts that belong together.
BLUES: Final = ("#0072b2", "#56b4e9", "#004c77", "#9ad0f0", "#2f8fc4", "#7f9fb5")

#: What the colours become where the reader's system is set to dark.
_DARK: Final = {
    COLOURS[0]: "#3f95d6", COLOURS[5]: "#a5daf8", COLOURS[1]: "#ef7f33", COLOURS[2]: "#2fbf93", COLOURS[3]: "#dd93bd",
    COLOURS[6]: "#a98bc4", COLOURS[7]: "#9aa3af", FAILED_COLOUR: "#ff6b7d",
    INK: "#c9d1d9", EDGE: "#6e7a86", GRID: "#2b333d", PALE: "#4b5662", BLUES[2]: "#1d6fa5",
}  # fmt: skip
_STYLE: Final = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9.5,
    "text.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "axes.edgecolor": EDGE,
    "axes.labelcolor": INK,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "hatch.linewidth": 0.6,
    "hatch.color": EDGE,
    "svg.hashsalt": "fedpruneshare",
}
_WIDTH_IN, _HEIGHT_IN, _PNG_DPI = 5.8, 3.4, 144


@dataclass(frozen=True)
class Drawing:
    """A finished plot. `name` is the stem of its files, `note` what a reader has to know of how it was made."""

    name: str
    title: str
    note: str
    is_wide: bool
    svg: bytes
    png: bytes

    @property
    def data_uri(self) -> str:
        """The SVG for a page, whose colours follow the reader's light or dark system."""
        return "data:image/svg+xml;base64," + base64.b64encode(_themed(self.svg)).decode()


@dataclass
class Sheet:
    """What a plot is drawn on; `drawing` is there once its `with` block has ended."""

    figure: Figure
    drawing: Drawing | None = None

    @property
    def finished(self) -> Drawing:
        """The drawing."""
        assert self.drawing is not None, "the sheet is still being drawn on"
        return self.drawing

    def axes(self) -> Axes:
        """The only axes of a plot with one."""
        return self.figure.add_subplot()


@contextmanager
def sheet(name: str, title: str, note: str = "", size_in: tuple[float, float] | None = None) -> Iterator[Sheet]:
    """Paper to draw on, of the usual size, or wide with a size of its own in inches."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: Any = _STYLE
    with matplotlib.rc_context(style):
        made = Sheet(Figure(figsize=size_in or (_WIDTH_IN, _HEIGHT_IN), layout="constrained"))
        FigureCanvasSVG(made.figure)
        yield made
        svg, png = io.BytesIO(), io.BytesIO()
        made.figure.savefig(svg, format="svg", facecolor="none", metadata={"Date": None, "Creator": None})
        made.figure.set_layout_engine("none")  # the SVG has laid it out
        FigureCanvasAgg(made.figure)
        made.figure.savefig(png, format="png", dpi=_PNG_DPI, facecolor="white", metadata={"Software": None})
    made.drawing = Drawing(name, title, note, size_in is not None, svg.getvalue(), png.getvalue())


def _themed(svg: bytes) -> bytes:
    """The same picture with a second set of colours for dark grounds."""
    text = svg.decode("utf-8")
    names = {colour: f"--c{index}" for index, colour in enumerate(_DARK)}
    text = re.sub(
        "|".join(names), lambda found: f"var({names[found[0].lower()]}, {found[0]})", text, flags=re.IGNORECASE
    )
    dark = "".join(f"{names[colour]}:{shade};" for colour, shade in _DARK.items())
    style = f"<style>@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}</style>"
    head, tag, rest = text.partition("<defs>")
    return f"{head}{tag}{style}{rest}".encode()


def whole_numbers(axes: Axes) -> None:
    """Ticks of the x axis at whole rounds."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))


def stacked_bars(axes: Axes, xs: Sequence[float], stack: Mapping[str, tuple[str, Sequence[float]]]) -> None:
    """Upright bars at `xs`, each a stack of (colour, heights) by label; heights below 0 stack downwards."""
    from matplotlib.collections import PolyCollection

    bases = {True: [0.0] * len(xs), False: [0.0] * len(xs)}
    for label, (colour, heights) in stack.items():
        base = bases[sum(heights) >= 0]
        boxes = [
            [(x - 0.42, low), (x + 0.42, low), (x + 0.42, low + height), (x - 0.42, low + height)]
            for x, low, height in zip(xs, base, heights, strict=True)
            if height
        ]
        # One collection: bars of their own are drawn much more slowly.
        axes.add_collection(PolyCollection(boxes, facecolors=colour, edgecolors="none", label=label))
        base[:] = [low + height for low, height in zip(base, heights, strict=True)]
    least, most = min(bases[False], default=0.0), max(bases[True], default=0.0)
    axes.set_xlim(min(xs, default=0) - 0.7, max(xs, default=1) + 0.7)
    axes.set_ylim(1.05 * least, 1.05 * most or 1.0)


def plain_log(axis: Axis) -> None:
    """Logarithmic ticks as plain numbers at 1, 2 and 5."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _position: f"{value:g}"))


def legend_above(axes: Axes, columns: int = 4) -> None:
    """A legend above the plot, where it hides nothing; none where only one thing is drawn."""
    handles, labels = axes.get_legend_handles_labels()
    if len(handles) < 2:
        return
    fitting = _columns_that_fit(labels, columns)
    axes.legend(
        handles, labels, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=fitting, borderaxespad=0.2,
        columnspacing=1.2, handlelength=1.6,
    )  # fmt: skip


def _columns_that_fit(labels: list[str], most: int) -> int:
    return max(1, min(most, 76 // (max(map(len, labels)) + 5), len(labels)))


def short(name: str, length: int = 34) -> str:
    """A name that fits beside a plot: the end of a long one, for that is where names differ. Never mathematics."""
    fitting = name if len(name) <= length else "…" + name[1 - length :]
    return fitting.replace("$", r"\$")
