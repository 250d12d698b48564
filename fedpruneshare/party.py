"""A party of a federation at work: its identity, the directory it trusts, and its signed messages.

All three services start from the same `[party]` table of their settings file. The directory may be replaced by a newer
one while they run: what is looked up is always the newest.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import msgspec
import structlog
from msgspec import Meta

from fedpruneshare.directory import Directory, HexKey, parse_directory, read_directory_file
from fedpruneshare.errors import PeerError, ProtocolError, SettingsError, StoreError
from fedpruneshare.link import Delivery, LinkLimits
from fedpruneshare.link.tls import TlsSettings
from fedpruneshare.messages import KIND_OF, Message, encode
from fedpruneshare.sealing import Identity, Opened, PublicKeys, open_message, sign_body
from fedpruneshare.storage import write_atomically
from fedpruneshare.topics import CHANNELS, Role, Topics

_log = structlog.get_logger()


class PartySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who this service is: its key file, the signed directory, and the root key that must have signed it (hex).

    `keep`: folder where a newer directory that reaches it while it runs is kept; empty: that of the directory file.
    """

    key_file: str
    directory: str
    root_key: HexKey
    keep: str = ""


class LinkSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of the broker connections, and the certificate for those that speak TLS (docs/protocol.md §3.1)."""

    keepalive_s: Annotated[int, Meta(ge=5, le=3600)] = 60
    connect_timeout_s: Annotated[float, Meta(gt=0)] = 10.0
    publish_timeout_s: Annotated[float, Meta(gt=0)] = 30.0
    reconnect_max_s: Annotated[float, Meta(gt=0)] = 30.0
    payload_bytes: Annotated[int, Meta(ge=4096, le=1_000_000)] = 256 * 1024
    tls: TlsSettings | None = None

    def limits(self) -> LinkLimits:
        """As the link takes them."""
        return LinkLimits(
            payload_bytes=self.payload_bytes,
            keepalive_s=self.keepalive_s,
            connect_timeout_s=self.connect_timeout_s,
            publish_timeout_s=self.publish_timeout_s,
            reconnect_max_s=self.reconnect_max_s,
        )


class Party:
    """One party: identity, directory and topics, ready to sign and to open messages.

    `files`: where its keys and directories lie, for `reload` and `adopt`; None where it lives in memory alone.
    `clock`: seconds since 1970.
    """

    def __init__(
        self,
        identity: Identity,
        directory: Directory,
        role: Role,
        files: PartySettings | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.identity, self.directory, self.role = identity, directory, role
        self._files, self._clock = files, clock
        self._watchers: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        return f"Party({self.ident!r}, {self.role}, directory version {self.directory.version})"

    @classmethod
    def load(cls, settings: PartySettings, role: Role) -> Party:
        """Read key file and directory, the newer of the configured and the kept one.

        Raises `SettingsError` if they do not belong together, `SignatureError` if the root did not sign a directory.
        """
        directory = _newest_directory(settings)
        party = cls(Identity.load(Path(settings.key_file)), directory, role, settings)
        party._check_own_keys()
        return party

    # ------------------------------------------------------------------ the directory

    def now(self) -> float:
        """Seconds since 1970 by this machine, but never before the directory was issued (a board may have no clock)."""
        return max(self._clock(), float(self.directory.issued_at))

    def on_change(self, watcher: Callable[[], None]) -> Callable[[], None]:
        """Register what to do after another directory or key came into force; what ends that again is returned.

        It may be called again: a stop that was cut short is followed by another.
        """
        self._watchers.append(watcher)

        def forget() -> None:
            with contextlib.suppress(ValueError):
                self._watchers.remove(watcher)

        return forget

    def adopt(self, data: bytes) -> bool:
        """Take a newer directory file into force, once it is kept on disk; False if it is the one in force.

        Raises `SignatureError` if the root did not sign it, `ProtocolError` for another federation or an older version,
        `SettingsError` for anything but a directory, `StoreError` where the disk does not take it.
        """
        if self._files is None:
            raise RuntimeError("a party without files knows no root key")
        directory = parse_directory(data, self._files.root_key)
        if not self._is_newer(directory):
            return False
        _keep(self._files, data)
        self._put_in_force(directory)
        return True

    def keep_directory(self) -> None:
        """Keep the directory this party has started with, where a folder was named for it: no older file is a way back.

        Raises `StoreError`.
        """
        if self._files is not None and self._files.keep:
            directory, data = _newest_file(self._files)
            kept = _kept(self._files)
            if directory == self.directory and not (kept.exists() and kept.read_bytes() == data):
                _keep(self._files, data)

    def reload(self) -> bool:
        """Read key file and directory again, as on SIGHUP; whether anything is new. Raises as `load` and `adopt`."""
        if self._files is None:
            return False
        identity, (directory, data) = Identity.load(Path(self._files.key_file)), _newest_file(self._files)
        if identity.ident != self.ident:
            found = f"key file {self._files.key_file} holds keys of {identity.ident!r}"
            raise SettingsError(f"{found}, expected those of {self.ident!r}")
        is_newer = self._is_newer(directory)
        if is_newer:
            _keep(self._files, data)
        is_new_key, self.identity = identity.public() != self.identity.public(), identity
        if is_newer or is_new_key:
            self._put_in_force(directory if is_newer else self.directory)
        return is_newer or is_new_key

    def directory_file(self) -> bytes | None:
        """The file of the directory in force, as the root signed it; None where the party lives in memory alone."""
        if self._files is None:
            return None
        for path in (_kept(self._files), Path(self._files.directory)):
            if path.exists():
                data = path.read_bytes()
                if parse_directory(data, self._files.root_key).version == self.directory.version:
                    return data
        return None

    def _is_newer(self, directory: Directory) -> bool:
        if directory.federation != self.directory.federation:
            raise ProtocolError(
                f"directory of federation {directory.federation!r}, expected {self.directory.federation!r}"
            )
        if directory.version < self.directory.version:
            raise ProtocolError(f"directory version {directory.version}, expected {self.directory.version} or later")
        if directory.version == self.directory.version and directory != self.directory:
            raise ProtocolError(f"another directory of version {directory.version}, expected the one in force")
        return directory.version > self.directory.version

    def _put_in_force(self, directory: Directory) -> None:
        self.directory = directory
        _log.info("directory-in-force", federation=directory.federation, version=directory.version)
        for watcher in tuple(self._watchers):
            watcher()

    def _check_own_keys(self) -> None:
        try:
            self._signing_key_id()
        except SettingsError:
            where = self._files.key_file if self._files else "memory"
            raise SettingsError(
                f"key file {where} does not hold the key the directory has for {self.ident!r}"
                f" as a {self.role} (version {self.directory.version})"
            ) from None

    def _signing_key_id(self) -> bytes:
        """The newest of the own keys that others will take. Raises `SettingsError` if there is none."""
        for key in self.identity.public():
            try:
                if self.directory.signing_key(self.role, self.ident, key.key_id, self.now()) == key.signing:
                    return key.key_id
            except PeerError:
                continue
        raise SettingsError(f"no key of {self.ident!r} is in force in directory version {self.directory.version}")

    def is_current(self) -> bool:
        """Whether this party still has a key in force: not after it was revoked, or its last key expired."""
        try:
            return bool(self._signing_key_id())
        except SettingsError:
            return False

    def sealing_keys(self, role: Role, ident: str) -> PublicKeys:
        """To which key of another party to seal. Raises `SignatureError` if it has none in force."""
        return self.directory.sealing_keys(role, ident, self.now())

    # ------------------------------------------------------------------ messages

    @property
    def ident(self) -> str:
        """The party's name."""
        return self.identity.ident

    @property
    def topics(self) -> Topics:
        """Topic names of the federation."""
        return Topics(self.directory.federation)

    def sign(self, message: Message) -> bytes:
        """A message -> the signed payload to publish."""
        return self.sign_body(KIND_OF[type(message)], encode(message))

    def sign_body(self, kind: str, body: bytes) -> bytes:
        """As `sign` for body bytes at hand, so that what was persisted is sent again unchanged."""
        public = [key.key_id for key in self.identity.public()]
        key_id = next((key for key in public if self._is_known(key)), public[0])
        return sign_body(self.identity, self.directory.federation, kind, body, key_id)

    def sign_with_oldest(self, message: Message) -> bytes:
        """As `sign`, by the oldest own key in force: who has yet to get the directory in force knows no newer one."""
        public = [key.key_id for key in self.identity.public()]
        key_id = next((key for key in reversed(public) if self._is_known(key)), public[0])
        return sign_body(self.identity, self.directory.federation, KIND_OF[type(message)], encode(message), key_id)

    def _is_known(self, key_id: bytes) -> bool:
        """Whether others know this key of ours: a new one counts from the directory on that lists it."""
        try:
            self.directory.signing_key(self.role, self.ident, key_id, 0.0)
        except PeerError:
            return False
        return True

    def open(self, channel: str, payload: bytes) -> Opened:
        """A payload that came on a channel -> the authentic message. Raises `MessageError` or `SignatureError`."""
        directory, now = self.directory, self.now()

        def signing_key(role: Role, ident: str, key_id: bytes) -> bytes:
            return directory.signing_key(role, ident, key_id, now)

        return open_message(payload, directory.federation, signing_key, CHANNELS[channel].kinds)

    def take(self, channel: str, delivery: Delivery) -> Opened | None:
        """As `open` for a handler, which goes on with the next message: what is refused is logged and gives None."""
        if not delivery.payload:  # the broker's eraser of a retained message, not a message (docs/protocol.md §1.3)
            return None
        if delivery.retained and not CHANNELS[channel].retained:
            # No broker can forbid it to who may write the topic; it would meet every reader for ever (§2.2).
            _log.warning("message-refused", topic=delivery.topic, reason="retained on a channel that keeps nothing")
            return None
        try:
            return self.open(channel, delivery.payload)
        except PeerError as error:
            _log.warning("message-refused", topic=delivery.topic, reason=str(error))
            return None


def _kept(settings: PartySettings) -> Path:
    """Where a newer directory is kept."""
    folder = Path(settings.keep) if settings.keep else Path(settings.directory).parent
    return folder / f"directory-in-force-{Path(settings.key_file).stem}.json"


def _keep(settings: PartySettings, data: bytes) -> None:
    """Have a directory on disk, before it is acted on. Raises `StoreError`."""
    path = _kept(settings)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(path, data)
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}, expected a disk that takes the newer directory") from None


def _newest_directory(settings: PartySettings) -> Directory:
    """As `_newest_file`, the directory alone."""
    return _newest_file(settings)[0]


def _newest_file(settings: PartySettings) -> tuple[Directory, bytes]:
    """The newer of the configured directory and the kept one, and its file: no restart goes back behind it."""
    configured, kept = Path(settings.directory), _kept(settings)
    found = _read_signed(configured, settings)
    with contextlib.suppress(PermissionError):  # of its folder: reading it says so
        if not kept.exists():
            return found
    other = _read_signed(kept, settings)
    is_later = other[0].federation == found[0].federation and other[0].version > found[0].version
    return other if is_later else found


def _read_signed(path: Path, settings: PartySettings) -> tuple[Directory, bytes]:
    data = read_directory_file(path)
    return parse_directory(data, settings.root_key, f"directory {path}"), data
