"""Judges a history by invariants I1-I12 (docs/histories.md), with nothing of the product imported.

`python -m testbed.faults.checker HISTORY.jsonl…` prints each violation and exits with 1 if there is any.
"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

Event = dict[str, Any]
LEFT_OUT = ("lone-rung", "dealer")  # why a device that has all receipts may be left out of a Freeze


class Judge:
    """The events of a run in the order they happened; each method is a rule and yields its violations."""

    def __init__(self, events: Iterable[Event]) -> None:
        self.index: dict[tuple[str, Any], list[Event]] = defaultdict(list)
        for e in ({**event, "turn": turn} for turn, event in enumerate(events)):
            for number in {None, e.get("round")}:
                self.index[e["event"], number].append(e)
        self.begin: Event = next(iter(self.index["begin", None]), {"grace_s": 0})
        self.plans = {plan["round"]: plan for plan in self.of("plan")}
        self.freezes = {freeze["freeze"]: freeze for freeze in self.of("freeze-signed")}
        self.words = {(e["round"], e["device"], e["upload"]): e.get("values", []) for e in self.of("upload")}

    def of(self, *kinds: str, number: int | None = None) -> list[Event]:
        """Events of some kinds, of one round or all, without those of aggregators that the run itself had lie."""
        found, liars = [e for kind in kinds for e in self.index[kind, number]], self.begin.get("dishonest", ())
        return sorted((e for e in found if e.get("aggregator") not in liars), key=lambda e: int(e["turn"]))

    def sound(self) -> Iterator[str]:
        """H: it begins, ends, decides a round, tells how what was applied came about, and nothing is outside a plan."""
        opened = {e["round"] for e in self.of("opened")}
        applied = {e["round"] for e in self.of("outcome") if e["phase"] == "APPLIED"}
        how = " upload receipt attendance device-model" * bool(applied) + " resource" * ("ceilings" in self.begin)
        yield from (f"H: no {kind}" for kind in f"begin outcome end{how}".split() if not self.of(kind))
        yield from (f"H round {number}: applied, and no sum was opened" for number in sorted(applied - opened))
        for e in self.of("receipt", "attendance", "freeze-signed", "sum-released", "opened", "outcome"):
            if e["round"] not in self.plans and e.get("phase") != "FAILED":
                yield f"H round {e['round']}: {e['event']} without a plan"

    def sums_are_exact(self) -> Iterator[str]:
        """I1: what was opened is the plain sum over the Freeze, opened from k sums of that Freeze."""
        for e in self.of("opened"):
            where, freeze = f"I1 round {e['round']}", self.freezes.get(e["freeze"], {"round": 0, "contributors": []})
            named = [c for c in freeze["contributors"] if c[0] not in e.get("left_out", ())]
            if freeze["round"] != e["round"] or named != e["contributors"]:
                yield f"{where}: opened for others than a signed Freeze names"
            answered = {s["aggregator"] for s in self.index["sum-released", e["round"]] if s["freeze"] == e["freeze"]}
            if len(answered) < self.plans.get(e["round"], {"k": 1})["k"]:
                yield f"{where}: opened from {len(answered)} sums"
            for segment, found in ((int(segment), found) for segment, found in e["values"].items()):
                names = [(e["round"], c[0], c[1]) for c in e["contributors"] if c[2] >= segment]
                parts = [self.words[name][segment] for name in names if segment < len(self.words.get(name, ()))]
                is_whole = len(parts) == len(names) and {len(part) for part in parts} == {len(found)}
                if not is_whole or found != [sum(column) for column in zip(*parts, strict=True)]:
                    yield f"{where}: segment {segment} is not the plain sum of its contributors"

    def nothing_is_lost(self) -> Iterator[str]:
        """I2: receipted by all aggregators used means counted, unless left out for a reason that is allowed."""
        for freeze in [e for e in self.of("freeze-signed") if not e.get("forged")]:
            receipts = [e for e in self.of("receipt", number=freeze["round"]) if e["verdict"] == "accepted"]
            held = {(e["device"], e["upload"], e["aggregator"]) for e in receipts}
            whole = {d for d, upload, _ in held if all((d, upload, a) in held for a in freeze["aggregators"])}
            revoked = {d for e in self.of("directory") if e["turn"] < freeze["turn"] for d in e["revoked"]}
            left_out = {device for device, why in freeze.get("left_out", {}).items() if why in LEFT_OUT}
            for device in sorted(whole - {c[0] for c in freeze["contributors"]} - revoked - left_out):
                yield f"I2 round {freeze['round']}: {device} has every receipt and is not in the Freeze"

    def nobody_counts_twice(self) -> Iterator[str]:
        """I3: each device's own one-hot place in segment 0 is 1 if it contributed, else 0."""
        for e in self.of("opened"):
            counted = Counter(c[0] for c in e["contributors"])
            places = self.begin.get("one_hot", {}) if "0" in e["values"] else {}
            found = {device: e["values"]["0"][place] for device, place in places.items()}
            for device in found.keys() | set(counted):
                if counted[device] > 1 or found.get(device, device in counted) != (device in counted):
                    yield f"I3 round {e['round']}: {device} counted {found.get(device, 'more')} times"

    def one_freeze_for_ever(self) -> Iterator[str]:
        """I4: an aggregator accepts one Freeze a round, and releases one sum, of that Freeze."""
        frozen, released = dict[tuple[str, int], str](), dict[tuple[str, int], str]()
        for e in self.of("freeze-accepted", "sum-released"):
            who, where = (e["aggregator"], e["round"]), f"I4 round {e['round']} {e['aggregator']}"
            is_sum = e["event"] == "sum-released"
            if frozen.get(who, "" if is_sum else e["freeze"]) != e["freeze"]:
                yield f"{where}: {e['event']} for another Freeze than the first"
            elif is_sum and released.setdefault(who, e["digest"]) != e["digest"]:
                yield f"{where}: released a second sum"
            frozen.setdefault(who, e["freeze"])

    def no_sum_below_the_floor(self) -> Iterator[str]:
        """I5: every opened segment has its floor of contributors, none of them revoked for the aggregator that sums."""
        for e in self.of("sum-released"):
            where, freeze = f"I5 round {e['round']} {e['aggregator']}", self.freezes.get(e["freeze"])
            if freeze is None or e["round"] not in self.plans:
                yield f"{where}: summed for a Freeze that was never signed"
                continue
            plan, own = self.plans[e["round"]], self.begin.get("floors", {}).get(e["aggregator"], (0, 0))
            low, later = max(own[0], plan["min_devices"]), max(own[1], plan["min_devices_segment"])
            counts = [sum(c[2] >= segment for c in freeze["contributors"]) for segment in sorted(freeze["segments"])]
            is_close = any(after < later or 0 < before - after < later for before, after in pairwise(counts))
            if not counts or counts[0] < low or is_close:
                yield f"{where}: segments of {counts} contributors, floors {low} and {later}"
            own = [a for a in self.of("freeze-accepted", number=e["round"]) if a["aggregator"] == e["aggregator"]]
            known = [d for d in self.of("directory") if own and d["turn"] < own[0]["turn"]]
            revoked = {device for d in known if d.get("party") == e["aggregator"] for device in d["revoked"]}
            if gone := revoked & {c[0] for c in freeze["contributors"]}:
                yield f"{where}: {min(gone)} was revoked"

    def nothing_after_the_end(self) -> Iterator[str]:
        """I6: what an aggregator first accepts after its attendance or its burn was in its attendance."""
        first = {(e["aggregator"], e["upload"]): e for e in self.of("receipt")[::-1] if e["verdict"] == "accepted"}
        listed: dict[tuple[str, int], set[str]] = defaultdict(set)
        for e in self.of("attendance", "burned", "receipt"):
            who = e["aggregator"], e["round"]
            if e["event"] != "receipt":
                listed[who] |= {upload[1] for upload in e.get("uploads", ())}
            elif e is first.get((who[0], e["upload"])) and who in listed and e["upload"] not in listed[who]:
                yield f"I6 round {who[1]} {who[0]}: accepted {e['device']} after its attendance"

    def models_never_fall(self) -> Iterator[str]:
        """I7: a device's model is one that a plan names, and neither its version nor its round falls."""
        last: dict[str, tuple[int, int]] = {}
        for e in self.of("device-model"):
            found, plan = (e["version"], e["round"]), self.plans.get(e["round"], {"model": []})
            before, last[e["device"]] = last.get(e["device"], found), found
            known = {**plan, "model": plan["model"][: len(e.get("model", ()))]}
            if any(e[name] != known.get(name) for name in ("plan", "version", "model") if name in e):
                yield f"I7 round {e['round']} {e['device']}: a model that no signed plan names"
            if found[0] < before[0] or found[1] < before[1]:
                yield f"I7 round {e['round']} {e['device']}: fell from {before} to {found}"

    def measures_hold(self) -> Iterator[str]:
        """I8: no canary word outside the stores of k aggregators. I10: measures stay under the run's ceilings."""
        for e in self.of("canary"):
            if e["found"] and len(set(e["aggregators"])) < min(plan["k"] for plan in self.plans.values()):
                yield f"I8: {e['found']} words of a device in {e['place']}"
        for e in self.of("resource"):
            for name in [n for n, most in self.begin.get("ceilings", {}).items() if e.get(n, 0) > most]:
                yield f"I10 {e['party']}: {name} = {e[name]}, at most {self.begin['ceilings'][name]}"

    def rounds_are_decided(self) -> Iterator[str]:
        """I9: every round ends in time, once, APPLIED or FAILED with a reason."""
        for e in self.of("outcome"):
            if (e["phase"], bool(e["reason"])) not in (("APPLIED", False), ("FAILED", True)):
                yield f"I9 round {e['round']}: {e['phase']} because of {e['reason']!r}"
        for number, plan in self.plans.items():
            found = self.of("outcome", number=number)
            if len({e["phase"] for e in found}) != 1:
                yield f"I9 round {number}: {len(found)} outcomes"
            elif found[0]["at"] > plan["at"] + plan["deadline_s"] + self.begin["grace_s"]:
                yield f"I9 round {number}: decided {found[0]['at'] - plan['at']:.1f} s after its plan"

    def uploads_keep_their_words(self) -> Iterator[str]:
        """I11: under one upload id a device has one plaintext, and an aggregator is given one share."""
        first: dict[tuple[Any, ...], str] = {}
        for e in [e for e in self.of("upload", "receipt") if "digest" in e]:
            key = e["event"], e["round"], e["device"], e["upload"], e.get("aggregator")
            if first.setdefault(key, e["digest"]) != e["digest"]:
                yield f"I11 round {e['round']} {e['device']}: two plaintexts under one upload id"

    def failed_rounds_change_nothing(self) -> Iterator[str]:
        """I12: a model is applied once for each APPLIED round and for no other; plans build on the newest."""
        phases = {e["round"]: e["phase"] for e in self.of("outcome")}
        applied, newest = defaultdict[int, set[int]](set), None
        for e in self.of("plan", "model-applied"):
            is_applied = e["event"] == "model-applied"
            if newest is not None and e["version"] not in ({newest, newest + 1} if is_applied else {newest}):
                yield f"I12 round {e['round']}: {e['event']} of version {e['version']}, the newest is {newest}"
            applied[e["round"]] |= {e["version"]} if is_applied else set()
            newest = e["version"]
        for number in sorted(phases.keys() | applied.keys()):
            if len(applied[number]) != (phases.get(number) == "APPLIED"):
                yield f"I12 round {number}: {len(applied[number])} models of a round that is {phases.get(number)}"


def judge(events: Iterable[Event]) -> list[str]:
    """All violations of a run's events, which are in the order they happened."""
    run = Judge(events)
    return [found for name, rule in vars(Judge).items() if name[0] != "_" and name != "of" for found in rule(run)]


def main(arguments: list[str]) -> int:
    """Judge the files named, as one run ordered by time; the exit code."""
    lines = [line for name in arguments for line in Path(name).read_text("utf-8").splitlines()]
    violations = judge(sorted(map(json.loads, lines), key=lambda event: float(event["at"])))
    sys.stdout.write("".join(violation + "\n" for violation in violations))
    return 1 if violations or not arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
