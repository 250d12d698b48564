"""The ratios of `bench sharing` as a plot. matplotlib is imported only when one is drawn."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Final

from testbed.benchmarks.sharing_figures import SharingReport
from testbed.report.drawing import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STYLE: Final[Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#e3e7ec",
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: small, and found by a search
    "svg.hashsalt": "fedpruneshare",
}
_DETAILS: Final = {"split": "all n shares", "open": "points with a gap", "add": None}


def ratio_plot(report: SharingReport) -> str:
    """SVG: how many times as quick as each peer ours is, by operation and scheme, at the largest size; log scale."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure as Canvas

    with rc_context(_STYLE):
        canvas = Canvas(figsize=(8.2, 6.2), layout="constrained")
        rows = canvas.subplots(
            3, 1, sharex=True, gridspec_kw={"height_ratios": [_height(report, name) for name in _DETAILS]}
        )
        for axes, operation in zip(rows, _DETAILS, strict=True):
            _draw(axes, report, operation)
        rows[0].set_xlim(0.3, 6 * max(one.ratio for one in report.figures))  # room for the numbers
        canvas.legend(*rows[0].get_legend_handles_labels(), loc="outside upper right", ncols=3)
        rows[-1].set_xlabel("our rate / the peer's (log scale)")
        out = io.StringIO()
        canvas.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()


def _height(report: SharingReport, operation: str) -> int:
    return max(1, len(_names(report, operation)))


def _names(report: SharingReport, operation: str) -> list[str]:
    found = [one for one in report.figures if one.operation == operation and not one.is_limit]
    return list(dict.fromkeys(one.other for one in found))


def _draw(axes: Axes, report: SharingReport, operation: str) -> None:
    largest = max(one.values for one in report.figures)
    names, detail = _names(report, operation), _DETAILS[operation]
    shown = [
        one
        for one in report.figures
        if one.operation == operation
        and one.values == largest
        and not one.is_limit
        and one.detail in (detail or one.detail)
    ]
    schemes = sorted({(one.n, one.k) for one in shown})
    for index, (n, k) in enumerate(schemes):
        bars = [(names.index(one.other) + 0.36 * index - 0.18, one.ratio) for one in shown if (one.n, one.k) == (n, k)]
        places, ratios = [place for place, _ in bars], [ratio for _, ratio in bars]
        axes.barh(places, ratios, height=0.34, left=0, color=COLOURS[index], label=f"({k},{n})")
        for place, ratio in bars:
            axes.text(
                ratio * 1.08, place, f"{ratio:,.1f}" if ratio < 100 else f"{ratio:,.0f}", va="center", fontsize=6.5
            )
    for one in shown:
        if one.demanded is not None:
            middle = names.index(one.other)
            axes.plot([one.demanded] * 2, [middle - 0.4, middle + 0.4], color="black", linewidth=1.4)
    axes.plot([], [], color="black", linewidth=1.4, label="demanded")
    axes.set_xscale("log")
    axes.axvline(1, color="#8a94a0", linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.minorticks_off()
    axes.grid(axis="x")
    axes.set_title(f"{operation}, {shown[0].detail if shown else ''}, {largest:,} values", loc="left", fontsize=9)
