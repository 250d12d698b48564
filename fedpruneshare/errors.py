"""Every error this project raises on purpose, by what is to be done about it (docs/protocol.md §10).

`PeerError`: what arrived is wrong. `LinkError`: the wire failed. `StoreError`: the disk is full or failing.
`SettingsError`: the operator can fix it.
Calling something out of order is our own bug and stays a plain `RuntimeError`.
Messages say what was found and what was expected; they never hold a secret.
"""

from __future__ import annotations

from dataclasses import dataclass


class FedPruneShareError(Exception):
    """Root of all errors of this project."""


# --------------------------------------------------------------------------- what arrived is wrong


class PeerError(FedPruneShareError):
    """Bytes, a message or a value that came from outside is not acceptable."""


class MessageError(PeerError):
    """A message does not decode: malformed, unknown field, wrong type, too large, trailing bytes."""


class SignatureError(PeerError):
    """A message is not signed by the party it must come from."""


class SealError(PeerError):
    """A sealed payload does not open: other key, other context, or changed bytes."""


class ProtocolError(PeerError):
    """A well-formed, authentic message that the protocol forbids at this point."""


class PlanError(PeerError):
    """A round plan that contradicts itself or would let a sum wrap."""


class SharingError(PeerError):
    """Shares that cannot be added or opened: bad point, length, word or polynomial."""


class InconsistentSharesError(SharingError):
    """More than k sums were given and they lie on no polynomial of degree < k."""


class DispersalError(SharingError):
    """Fragments that do not rebuild one blob. `suspects`: points whose fragments do not fit the most others."""

    def __init__(self, message: str, suspects: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.suspects = suspects


class SupportMismatchError(PeerError):
    """The support or model derived here differs from the digest the plan names."""


class ModelFileError(PeerError):
    """An ONNX file or task bundle is malformed, too large, or not the expected one."""


class GateError(PeerError):
    """A published model that a device will not train on: its model gate names the reason."""


class DataError(PeerError):
    """A data set is missing, damaged, or not the one it claims to be."""


# --------------------------------------------------------------------------- the wire failed


class LinkError(FedPruneShareError):
    """A message could not be carried."""


class DisconnectedError(LinkError):
    """The connection fell before the broker answered."""


class RefusedError(LinkError):
    """The broker answered with a negative reason code; `reason` holds its text."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class CertificateError(RefusedError):
    """A TLS certificate, the broker's or this party's, is not what it must be; `reason` says in a word why."""


class CertificateDateError(LinkError):
    """A certificate's dates and a clock do not agree; renewing the one or setting the other ends it."""


class PayloadTooLargeError(LinkError):
    """A payload exceeds what the broker takes; refused before it is queued."""


# --------------------------------------------------------------------------- the disk failed


class StoreError(FedPruneShareError):
    """The disk does not take (or give) what a service must keep: full or failing. Nothing of it was kept; try again."""


# --------------------------------------------------------------------------- a run on this machine failed


class RunError(FedPruneShareError):
    """A process of a testbed run ended, or did not do in time what was waited for."""


# --------------------------------------------------------------------------- the operator can fix it


@dataclass(frozen=True)
class Fault:
    """One mistake in a settings file: where, what was found, what was expected, and a proposal."""

    path: str
    found: str
    expected: str
    hint: str = ""

    def __str__(self) -> str:
        text = f"{self.path}: found {self.found}, expected {self.expected}"
        return f"{text} ({self.hint})" if self.hint else text


class SettingsError(FedPruneShareError):
    """Settings an operator can correct. Holds *all* faults found, not only the first."""

    def __init__(self, message: str, faults: tuple[Fault, ...] = ()) -> None:
        super().__init__(message)
        self.faults = faults

    def __str__(self) -> str:
        return "\n".join([str(self.args[0]), *(f"  {fault}" for fault in self.faults)])


class StoreDamagedError(SettingsError):
    """A service's store holds what nobody wrote: it cannot go on from it."""


class MeterError(SettingsError):
    """A power sensor is absent, may not be read, or gives nothing that can be measured with."""


class TaskError(SettingsError):
    """A task module or its model cannot be handled; the message gives the reason."""
