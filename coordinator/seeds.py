"""The seed of the hidden checksum, sealed to each device of a cohort (docs/protocol.md §5.11)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import structlog

from fedpruneshare.errors import PeerError
from fedpruneshare.messages import ChecksumSeed, RoundPlan, Suite
from fedpruneshare.party import Party
from fedpruneshare.sealing import checksum_seed_context, seal
from fedpruneshare.topics import Role

_log = structlog.get_logger()
#: Of the suites a plan allows, the first of these: seeds are short, so that no cipher is quicker than another.
_PREFERRED: Final = (Suite.XWING_CHACHA20, Suite.XWING_AES256, Suite.X25519_CHACHA20, Suite.X25519_AES256)


class SeedLetters:
    """The signed payloads of one round's seed, by device: made when they are first asked for, and kept.

    `plan_digest` is bound into the seals, so that a seed serves no other round. `repr` does not show the seed.
    """

    def __init__(self, party: Party, plan: RoundPlan, plan_digest: bytes, seed: bytes) -> None:
        self._party, self._plan, self._digest, self._seed = party, plan, plan_digest, seed
        self._suite = next(suite for suite in _PREFERRED if suite in plan.suites)
        self._made: dict[str, bytes] = {}

    def payloads(self, devices: Sequence[str]) -> dict[str, bytes]:
        """The payloads of some devices; one without a key in force gets none."""
        return {device: payload for device in devices if (payload := self._payload(device))}

    def _payload(self, device: str) -> bytes:
        if device not in self._made:
            try:
                self._made[device] = self._seal(device)
            except PeerError as error:  # revoked since the plan was made
                _log.warning("no-checksum-seed", device=device, reason=str(error))
                return b""
        return self._made[device]

    def _seal(self, device: str) -> bytes:
        keys, parties = self._party.sealing_keys(Role.DEVICE, device), (self._party.ident, device)
        context = checksum_seed_context(self._party.directory.federation, self._digest, parties)
        sealed = seal(keys, self._seed, context, self._suite)
        return self._party.sign(ChecksumSeed(self._plan.round_id, self._digest, self._suite, keys.key_id, sealed))
