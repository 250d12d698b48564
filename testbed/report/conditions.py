"""What was emulated in a run and what was real, as its settings and its parts say."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Final

from testbed.report.markup import folded, items, section, size, small, table
from testbed.report.measures import source_text, sources
from testbed.report.runs import Report, RunFolder, differences, flat, folder_names, weighty_differences
from testbed.summary import Sharing

_DATA: Final = {
    "full": "The full data set was used.",
    "fixture": "The sample that ships with the project was used.",
    "any": "",
}
#: Back ends that shape nothing.
_UNSHAPED: Final = ("", "none")


def privacy_note(shared: Sharing | None) -> str:
    """Who could see a single device's update in a run."""
    if shared is None:
        return "Nothing was shared: the coordinator saw every single update in the clear."
    if shared.reveal == "each":
        return (
            "The coordinator saw every single update in this run (reveal = each). "
            f"Up to t = {shared.t} of the {shared.n} aggregators together, the brokers and the network saw none."
        )
    return (
        f"Up to t = {shared.t} of the {shared.n} aggregators together, the brokers and the network learnt nothing of a "
        "single update; the coordinator saw only sums."
    )


def emulation(report: Report) -> str:
    """The section on what is emulated and what is real, folder by folder."""
    names = folder_names([folder.path for folder in report.folders]) if report.is_comparison else [""]
    parts = []
    for folder, name in zip(report.folders, names, strict=True):
        points = [*_points(folder), *_privacy(report, folder), *_energy(report, folder)]
        points.append(f"Task: {folder.summary.task}. {_DATA[folder.scenario.task.data]}".strip())
        body = items(points) + _links_table(folder.conditions) + _conditions_table(folder.conditions)
        parts.append(folded(name, body, is_open=True) if name else body)
    return section("conditions", "What is emulated, what is real", *parts)


def _points(folder: RunFolder) -> list[str]:
    """The machine, the network, the boards, and where bytes were counted."""
    summary, scenario = folder.summary, folder.scenario
    aggregators = f"{scenario.aggregators.count} aggregators with a broker each"
    if scenario.aggregators.count == 1:
        aggregators = "one aggregator with a broker of its own"
    elif any(arm.sharing is None for arm in summary.arms.values()):
        aggregators += " (where nothing is shared one of them)"
    return [
        f"{summary.devices} devices, {aggregators}, one coordinator, "
        f"talking over real {scenario.brokers.kind} brokers. {_engine(folder.conditions)} "
        "Keys, signatures, sealing and sharing are those of a deployment; keys were made for this run and thrown away.",
        _links(part_of(folder.conditions, "links", "backend")),
        _bytes(folder),
        *_boards(part_of(folder.conditions, "boards", "cpu")),
    ]


def part_of(conditions: Mapping[str, Any], name: str, mark: str) -> Mapping[str, Any]:
    """What one part of a run recorded, known by the key `mark`; of several seeds, what it did of the first."""
    found = conditions.get(name)
    if isinstance(found, Mapping) and found and mark not in found:
        found = next(iter(found.values()))
    return found if isinstance(found, Mapping) else {}


def _links(links: Mapping[str, Any]) -> str:
    backend = str(links.get("backend", ""))
    if backend in _UNSHAPED:
        return "The network is not shaped: there is no loss, delay or limit of rate but what the machine itself gives."
    if backend == "application":
        return "Links are emulated at the application's links, not at a network interface." + _why(links)
    control = links.get("congestion_control")
    named = control.get("device") if isinstance(control, Mapping) else control
    said = f" TCP's congestion control: {named}." if named else ""
    return f"Links are emulated in network namespaces of this machine, by {backend}.{_why(links)}{said}"


def _why(links: Mapping[str, Any]) -> str:
    return f" The reason for this choice: {links['why']}." if links.get("why") else ""


def _bytes(folder: RunFolder) -> str:
    if any(arm.wire_bytes.source == "interface" for arm in folder.summary.arms.values()):
        text = "Bytes are counted twice: MQTT payload by the devices, everything at their network interfaces."
    else:
        text = "Bytes are counted MQTT payload bytes; headers of MQTT, TCP and IP come on top."
    ledger = part_of(folder.conditions, "ledger", "devices")
    if not ledger:
        return text
    checked = [f"{ledger['payload_checked']} of {ledger['devices']} against their links' own counts"]
    if "interface_checked" in ledger:
        checked.append(f"{ledger['interface_checked']} against their interfaces")
    return f"{text} Ledgers of devices checked: {', '.join(checked)}."


def _boards(boards: Mapping[str, Any]) -> list[str]:
    kind = boards.get("cpu", "none")
    if kind in _UNSHAPED:
        points = ["Times are those of this machine's processor, not of the boards the devices stand for."]
    else:
        points = [f"Processor speed is emulated ({kind}): times are those of this machine held back."]
    points += [str(boards["crowded"])] if boards.get("crowded") else []
    memory, heat = boards.get("memory"), boards.get("thermal")
    if isinstance(memory, Mapping) or memory is True:
        points.append("Memory is limited to that of the boards.")
    if isinstance(heat, Mapping):
        points.append("Heat and throttling are emulated by the boards' thermal models.")
    return points


def _engine(conditions: Mapping[str, Any]) -> str:
    engine = conditions.get("engine")
    name = engine.get("name", "") if isinstance(engine, Mapping) else engine
    if name == "synthetic":
        return "The devices are synthetic: they share, upload and await receipts as real ones, but train nothing."
    if name == "ray":
        return "Each device is a process that Ray placed."
    return "Each is a process of its own on one machine."


def _privacy(report: Report, folder: RunFolder) -> list[str]:
    arms = [arm for arm in report.arms if arm.folder is folder]
    notes: dict[str, list[str]] = defaultdict(list)
    for arm in arms:
        notes[privacy_note(arm.figures.sharing)].append(arm.name)
    if len(notes) == 1:
        return list(notes)
    return [f"{', '.join(names)}: {note}" for note, names in notes.items()]


def _energy(report: Report, folder: RunFolder) -> list[str]:
    found = list(dict.fromkeys(name for arm in report.arms if arm.folder is folder for name in sources(arm)))
    if not found:
        return ["Energy was not measured."]
    if found == ["model"]:
        return [
            "Joules are modelled, not measured: those of an emulated board, by its profile and what each phase took "
            "(docs/energy.md)."
        ]
    return [
        f"Joules are {' and '.join(map(source_text, found))}; what is measured and what is modelled is never added."
    ]


def _links_table(conditions: Mapping[str, Any]) -> str:
    """Each link as it was asked for, and as its self-test found it before the run."""
    links = part_of(conditions, "links", "backend")
    profiles, tests = links.get("profiles"), links.get("self_test")
    if not isinstance(profiles, Mapping) or links.get("backend") in _UNSHAPED:
        return ""
    rows = [
        [name, str(asked.get("devices", "")), way, *_asked(asked, way), *_found(tests, name, way)]
        for name, asked in profiles.items()
        for way in ("up", "down")
    ]
    head = ["link", "devices", "way", "rate asked", "delay asked", "loss asked", "rate", "delay", "packets lost"]
    note = small("The last three columns: what the self-test measured at one device of the link before the run.")
    return folded("Links as asked and as measured", table(head, rows) + note, is_open=True)


def _asked(profile: Mapping[str, Any], way: str) -> list[str]:
    rate = profile.get(f"{way}_kbit_s")
    return [
        f"{rate:g} kbit/s" if rate else "no limit",
        f"{profile.get('delay_ms', 0):g} ± {profile.get('jitter_ms', 0):g} ms",
        f"{profile.get('loss_percent', 0):g} %",
    ]


def _found(tests: Any, name: str, way: str) -> list[str]:
    test = tests.get(name) if isinstance(tests, Mapping) else None
    found = test.get(way) if isinstance(test, Mapping) else None
    if not isinstance(found, Mapping):
        return ["not measured"] * 3
    rate = found.get("kbit_s")
    delay, expected = found.get("delay_ms"), found.get("delay_expected_ms")
    return [
        f"{rate:g} kbit/s" if rate else "–",
        "–" if delay is None else f"{delay:.1f} ms" + (f" ({expected:.1f} expected)" if expected else ""),
        f"{found.get('lost', 0)} of {found.get('packets', 0)}",
    ]


def _conditions_table(conditions: Mapping[str, Any]) -> str:
    """Everything the run's parts wrote down of the conditions, self-tests included."""
    if not conditions:
        return ""
    rows = [[key, _text(value)] for key, value in flat(conditions).items()]
    return folded("Conditions as recorded", table(["what", "as found"], rows, file="summary.json"))


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value)) or "none"
    return f"{value:.6g}" if isinstance(value, float) else "none" if value is None else str(value)


def metered(report: Report) -> str:
    """What devices on metered links paid for: every byte of theirs, both ways."""
    rows = []
    for arm in report.arms:
        profiles = getattr(getattr(arm.folder.scenario, "links", None), "profiles", {})
        for link, profile in profiles.items():
            totals = [one for one in arm.totals if one.link == link]
            if not getattr(profile, "metered", False) or not totals:
                continue
            at_wire = all(one.up.wire is not None and one.down.wire is not None for one in totals)
            up = sum((one.up.wire if at_wire else one.up.payload) or 0 for one in totals)
            down = sum((one.down.wire if at_wire else one.down.payload) or 0 for one in totals)
            runs = len(totals) * len(arm.seeds)
            where = "interface" if at_wire else "MQTT payload: headers come on top"
            rows.append([
                arm.name, link, str(len(totals)), size(up / len(arm.seeds)), size(down / len(arm.seeds)),
                size((up + down) / runs), where,
            ])  # fmt: skip
    if not rows:
        return ""
    head = ["arm", "link", "devices", "up", "down", "both ways a device", "counted at"]
    return section("metered", "Metered links", table(head, rows), small("What these devices paid for, one seed's run."))


def compared_settings(report: Report) -> str:
    """Where the settings of compared folders differ, the weighty differences first."""
    if not report.is_comparison:
        return ""
    names = folder_names([folder.path for folder in report.folders])
    rows = [[key, *values] for key, values in differences(report)]
    weighty = weighty_differences(report)
    alike = small("Seeds, data and length are the same in all of them.") if not weighty else ""
    body = table(["setting", *names], rows) if rows else small("All settings are the same.")
    return section("differences", "Where the settings of these runs differ", items(weighty) if weighty else alike, body)
