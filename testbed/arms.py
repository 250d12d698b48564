"""The arms of a comparison: one scenario with and without pruning, with and without sharing (docs/measuring.md).

Everything else stays: task, split, fleet, links, boards, brokers, rounds, training, seeds and, by `rounds.strata`, the
devices drawn for every round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import msgspec

from fedpruneshare.errors import SettingsError
from testbed.scenario import Scenario
from testbed.summary import ARM

FEDAVG: Final = "fedavg"
PRUNE_ONLY: Final = "prune-only"
SHARE_ONLY: Final = "share-only"
#: What these are named for must be in the scenario.
_SHARING: Final = (SHARE_ONLY, ARM)


def arm_scenario(scenario: Scenario, arm: str) -> Scenario:
    """A scenario as one of the `ARMS` runs it.

    Raises `KeyError` for another name, `SettingsError` for an arm that shares where the scenario shares nothing.
    """
    if arm in _SHARING and scenario.sharing.reveal == "plain":
        raise SettingsError(f"arm {arm} of a scenario with sharing.reveal = plain, expected one that shares")
    offered = len(scenario.pruning.rungs) + bool(scenario.pruning.probe)
    rounds = msgspec.structs.replace(scenario.rounds, strata=scenario.rounds.strata or offered)
    return ARMS[arm](msgspec.structs.replace(scenario, rounds=rounds))


def _dense(scenario: Scenario) -> Scenario:
    """All weights from the first round to the last, for every device."""
    pruning = msgspec.structs.replace(
        scenario.pruning, rungs=(1.0,), widths=(), start_density=1.0, target_density=1.0, probe=0.0
    )
    return msgspec.structs.replace(scenario, pruning=pruning)


def _plain(scenario: Scenario, bits: int) -> Scenario:
    """No sharing: floats of so many bits, to one aggregator."""
    sharing = msgspec.structs.replace(
        scenario.sharing, threshold=1, privacy_threshold=0, field="F31", dealer_checks=0, reveal="plain"
    )
    return msgspec.structs.replace(
        scenario,
        sharing=sharing,
        aggregators=msgspec.structs.replace(scenario.aggregators, count=1),
        coding=msgspec.structs.replace(scenario.coding, value_bits=bits, vector_bits=bits),
    )


#: Name of an arm -> what it makes of the scenario. In the order reports show them.
ARMS: Final[Mapping[str, Callable[[Scenario], Scenario]]] = MappingProxyType(
    {
        FEDAVG: lambda scenario: _plain(_dense(scenario), 32),
        PRUNE_ONLY: lambda scenario: _plain(scenario, 16),
        SHARE_ONLY: _dense,
        ARM: lambda scenario: scenario,
    }
)
