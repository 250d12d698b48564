"""Two slots for the public model, so that a device has a whole one whatever befalls it (docs/protocol.md §9.1).

A model that came in goes into the slot that is not needed: written, synced, read back, and then made the *trial* by one
rename of a small file. Once it was seen to work it is *confirmed*, and the next one goes into the other slot. A trial
that two tries did not confirm, or that fails, is given up for the confirmed one. The confirmed slot is never written.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
import structlog
from msgspec import Meta

from edge_client.inference.model_file import MODEL_FILE, StoredModel, load_model, save_model
from fedpruneshare.crash_points import reach
from fedpruneshare.errors import ModelFileError
from fedpruneshare.storage import write_atomically

_log = structlog.get_logger()

STATE_FILE: Final = "model-slots.json"
#: How often a trial may be begun before it counts as one that ends whatever tries it.
MOST_TRIES: Final = 2
_MOST_BYTES: Final = 16 * 1024
_Hex = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class Slot(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model in a slot: SHA-256 of its file, the round it is of, how often it was tried."""

    place: Literal["a", "b"]
    digest: _Hex
    round_id: int
    tries: int = 0


class _State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schema: Literal[1] = 1
    confirmed: Slot | None = None
    trial: Slot | None = None


class ModelSlots:
    """The slots below a device's store; a `device predict` beside a device at work may change them, too."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def receive(self, model: StoredModel) -> Slot:
        """Make a model that came in the trial. Raises `OSError`, `ModelFileError` where it does not read as written."""
        with self._locked():
            state = self._read()
            kept = state.confirmed or state.trial
            place: Literal["a", "b"] = "b" if kept is not None and kept.place == "a" else "a"
            self._path(place).mkdir(parents=True, exist_ok=True)
            digest = save_model(self._path(place), model)
            slot = Slot(place, digest.hex(), model.facts.round_id)
            self.load(slot)
            reach("device.slot-switched.before")
            self._write(msgspec.structs.replace(state, trial=slot))
            reach("device.slot-switched.after")
        return slot

    def trial(self) -> Slot | None:
        """The model that has yet to be seen to work, if there is one."""
        return self._read().trial

    def confirmed(self) -> Slot | None:
        """The last model that was seen to work."""
        return self._read().confirmed

    def newest(self) -> StoredModel | None:
        """The newest model that reads, confirmed or not."""
        state = self._read()
        for slot in (state.trial, state.confirmed):
            try:
                if slot is not None:
                    return self.load(slot)
            except ModelFileError as error:
                _log.error("model-damaged", round_id=slot.round_id if slot else 0, reason=str(error))
        return None

    def load(self, slot: Slot) -> StoredModel:
        """The model in a slot. Raises `ModelFileError` unless it is byte for byte what was put there."""
        model, digest = load_model(self._path(slot.place))
        if digest.hex() != slot.digest:
            path = self._path(slot.place) / MODEL_FILE
            raise ModelFileError(f"{path} is {digest.hex()[:16]}…, expected {slot.digest[:16]}…: it is damaged")
        return model

    def folder_of(self, slot: Slot) -> Path:
        """Where the model of a slot lies."""
        return self._path(slot.place)

    def begin_try(self, slot: Slot) -> bool:
        """Note that a trial is tried, before it is; False if it is not the trial any more, or was tried enough."""
        with self._locked():
            state = self._read()
            if state.trial is None or state.trial.digest != slot.digest:
                return False
            if state.trial.tries >= MOST_TRIES:
                _log.error("model-given-up", round_id=slot.round_id, reason=f"not confirmed in {MOST_TRIES} tries")
                self._write(msgspec.structs.replace(state, trial=None))
                return False
            begun = msgspec.structs.replace(state.trial, tries=state.trial.tries + 1)
            self._write(msgspec.structs.replace(state, trial=begun))
        return True

    def confirm(self, slot: Slot) -> None:
        """The trial works: from now on it is the model. Nothing happens if another one has come in since."""
        with self._locked():
            state = self._read()
            if state.trial is not None and state.trial.digest == slot.digest:
                self._write(_State(confirmed=msgspec.structs.replace(slot, tries=0)))

    def reject(self, slot: Slot, reason: str) -> None:
        """The trial does not work: the confirmed model stays."""
        _log.error("model-given-up", round_id=slot.round_id, reason=reason)
        with self._locked():
            state = self._read()
            if state.trial is not None and state.trial.digest == slot.digest:
                self._write(msgspec.structs.replace(state, trial=None))

    def _path(self, place: str) -> Path:
        return self._folder / f"model-{place}"

    def _read(self) -> _State:
        path = self._folder / STATE_FILE
        try:
            with path.open("rb") as file:
                return msgspec.json.decode(file.read(_MOST_BYTES), type=_State)
        except FileNotFoundError:
            return _State()
        except (OSError, ValueError) as error:  # msgspec's errors are ValueErrors
            _log.error("model-slots-damaged", path=str(path), reason=str(error))
            return _State()

    def _write(self, state: _State) -> None:
        write_atomically(self._folder / STATE_FILE, msgspec.json.encode(state) + b"\n")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "model-slots.lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
