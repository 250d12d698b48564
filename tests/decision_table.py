"""The table in docs/adaptation.md: what each shipped board decides, for one defined case.

Run it to write the table into the page: `PYTHONPATH=. python tests/decision_table.py`.
"""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path
from typing import Final

from edge_client.adaptation.calibration import Calibration, LinkRate
from edge_client.board.profiles import BoardProfile, boards
from edge_client.density import DensityDecision, DeviceState, Offer, RungCost, decide
from edge_client.device import Health
from edge_client.settings import DeviceLimits

PAGE: Final = Path(__file__).resolve().parent.parent / "docs/adaptation.md"
BEGIN: Final = "<!-- decisions: begin (tests/decision_table.py) -->"
END: Final = "<!-- decisions: end -->"

PARAMETERS: Final = 545_098  # CNN4 on 32×32×3
STEP_S: Final = 0.0196  # one step at width 1, batch 32, one thread of an x86-64 server
BASE_MIB, STEP_MIB = 230.0, 100.0  # the process with torch and model; on top of it while training CNN4
STEPS, LEAST_STEPS = 95, 19  # 600 examples in batches of 32, five epochs; at least one
WIDTHS: Final = (0.25, 0.5, 1.0)  # of rung 0, 1, 2, with as much of the scheduled density
SCHEDULED: Final = (1.0, 0.1)
DEADLINES_S: Final = (30.0, 120.0)
#: Name, bytes a second up, and seconds of a round trip; None: the board's own network as its profile has it.
LINKS: Final = (("own", None), ("LTE", LinkRate(625_000.0, 0.06)), ("slow, lossy", LinkRate(8_000.0, 0.8)))
#: Payload that survives the way down, in bytes a second.
DOWN: Final = {"own": None, "LTE": 2_500_000.0, "slow, lossy": 16_000.0}


def rungs(scheduled: float) -> tuple[RungCost, ...]:
    """Rung j has density `width · scheduled`, as far as a model of that width holds so many weights (w² of them).

    Down: 16-bit values. Up, two of three: 4 bytes for 4 digits a coordinate to two aggregators, a seed to the third.
    """
    made = []
    for number, width in enumerate(WIDTHS):
        density = min(width * scheduled, width * width)
        kept = math.ceil(density * PARAMETERS)
        words = math.ceil(kept / 4) + 1
        each = {"agg-1": 4 * words, "agg-2": 4 * words, "agg-3": 32}
        made.append(RungCost(number, width, density, 2 * kept, sum(each.values()), each, words))
    return tuple(made)


def decision(board: BoardProfile, link: str, scheduled: float, deadline_s: float) -> DensityDecision:
    """What this board decides at 45 °C, with all its memory but the system's share free, on mains, without a budget."""
    up = dict(LINKS)[link]
    calibration = Calibration(
        board=board.name,
        task="cnn4",
        batch_size=32,
        step_s={"1": STEP_S * board.train_scale},
        links={} if up is None else {f"agg-{x}": up for x in (1, 2, 3)},
        receive_bytes_s=DOWN[link],
        base_mib=BASE_MIB,
        step_mib={"1": STEP_MIB},
    )
    seen = {"board": board.name, "temperature_c": 45.0, "alarms": (), "links": (), "unread": ()}
    seen["free_mib"] = max(0, int(board.ram_mib - board.memory_reserve_mib - BASE_MIB))
    health = Health(**{field.name: seen.get(field.name) for field in fields(Health)})  # type: ignore[arg-type]
    offer = Offer(rungs(scheduled), STEPS, LEAST_STEPS, deadline_s, 32, PARAMETERS, "cnn4")
    return decide(offer, DeviceLimits(), DeviceState(board, health, calibration))


def cell(made: DensityDecision) -> str:
    if made.rung is None:
        return f"– {made.constraint}"
    steps = "" if made.local_steps == STEPS else f" ({made.local_steps} steps)"
    return f"{made.rung}{steps} {made.constraint}"


def table() -> str:
    """Both tables in Markdown, one for each scheduled density."""
    lines: list[str] = []
    for scheduled in SCHEDULED:
        sizes = "; ".join(
            f"rung {cost.rung}: width {cost.width:g}, density {cost.density:.3g}, "
            f"{cost.down_bytes / 1000:.0f} kB down, {cost.up_bytes / 1000:.0f} kB up"
            for cost in rungs(scheduled)
        )
        lines += [f"Scheduled density {scheduled:g} ({sizes}).", ""]
        columns = [(name, deadline_s) for name, _ in LINKS for deadline_s in DEADLINES_S]
        lines.append("| board | " + " | ".join(f"{name}, {deadline_s:.0f} s" for name, deadline_s in columns) + " |")
        lines.append("|" + " --- |" * (len(columns) + 1))
        for board in boards():
            cells = [cell(decision(board, name, scheduled, deadline_s)) for name, deadline_s in columns]
            lines.append(f"| `{board.name}` | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def page_with_table(page: str) -> str:
    """The page with what stands between the two marks made anew. Raises `ValueError` without the marks."""
    before, _, rest = page.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError(f"the page has no {BEGIN} followed by {END}")
    return f"{before}{BEGIN}\n\n{table()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page_with_table(PAGE.read_text("utf-8")), "utf-8")
