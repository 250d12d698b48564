"""The root's folder at work: opened under a lock, unlocked with the passphrase, changed in one step.

root.key                both private keys, encrypted (the one file that must never leave this folder)
federation.toml         the operator's settings
register.json           who is who; its rename is the moment a command takes effect
ca.pem, crl.pem         the certificate authority and who is revoked
certificates/           every certificate that was issued, by serial number
directory.json          the newest version of the directory; directories/ has them all
bundles/, renewals/     what was made for parties, until it is carried to them
updates/                for each host with a broker what it needs anew: directory, access list, revocations
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import msgspec

from fedpruneshare.directory import Directory, parse_directory, sign_directory, utc
from fedpruneshare.errors import SettingsError
from fedpruneshare.keys import Identity
from fedpruneshare.settings import load_settings, render_toml
from fedpruneshare.storage import write_atomically
from fedpruneshare.topics import Role
from firmware_configs.provision.authority import Authority, Issued
from firmware_configs.provision.bundles import Bundle, discard, finish, renew_bundle, write_changed, write_folder
from firmware_configs.provision.register import (
    Card,
    FederationSettings,
    Record,
    Register,
    make_directory,
    missing_services,
)
from firmware_configs.provision.rendering import public_files
from firmware_configs.provision.vault import ROOT_FILE, open_root, seal_root

SETTINGS: Final = "federation.toml"
REGISTER: Final = "register.json"
AUTHORITY, REVOKED = "ca.pem", "crl.pem"
CURRENT, VERSIONS = "directory.json", "directories"
LOCK: Final = "lock"
BUNDLES, RENEWALS, UPDATES, CERTIFICATES = "bundles", "renewals", "updates", "certificates"

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """The clock of a real office."""
    return datetime.now(UTC).replace(microsecond=0)


class Office:
    """The opened folder. `register` and `settings` are what the next `commit` will make true."""

    def __init__(self, folder: Path, settings: FederationSettings, register: Register, clock: Clock = utc_now) -> None:
        self.folder = folder
        self.settings = settings
        self.register = register
        self._clock = clock
        self._keys: tuple[Identity, Authority] | None = None
        self._bundles: list[Bundle] = []

    def __repr__(self) -> str:
        return f"Office({self.settings.federation!r}, directory version {self.register.version})"

    # ----------------------------------------------------------------------- opening

    @classmethod
    @contextlib.contextmanager
    def create(
        cls, folder: Path, settings: FederationSettings, passphrase: str, clock: Clock = utc_now
    ) -> Iterator[Office]:
        """A new federation with new root keys. Raises `SettingsError` where one was begun, or anything else lies."""
        folder = folder.absolute()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _refuse_used(folder)
        with _locked(folder):
            _refuse_used(folder)
            checked = load_settings(msgspec.to_builtins(settings), FederationSettings)
            root = Identity.generate("root")
            authority = Authority.create(checked.federation, clock=clock)
            folder.chmod(0o700)
            seal_root(folder / ROOT_FILE, root, authority.key_pem(), passphrase)
            write_atomically(folder / SETTINGS, render_toml(checked).encode())
            write_atomically(folder / AUTHORITY, authority.certificate)
            write_atomically(folder / REVOKED, authority.crl())
            register = Register(root.public()[0].signing.hex())
            # The last file: without it nothing has begun, and `init` may be called again.
            write_atomically(folder / REGISTER, msgspec.json.encode(register))
            yield cls(folder, checked, register, clock)

    @classmethod
    @contextlib.contextmanager
    def open(cls, folder: Path, clock: Clock = utc_now) -> Iterator[Office]:
        """The office in `folder`, nobody else's while it is open. What a killed command left is completed or deleted.

        Raises `SettingsError` if there is none, or another command is at work in it.
        """
        folder = folder.absolute()
        if not (folder / REGISTER).exists():
            raise SettingsError(f"{folder} holds no federation, expected the folder of `provision init`")
        with _locked(folder):
            try:
                register = msgspec.json.decode((folder / REGISTER).read_bytes(), type=Register)
            except msgspec.DecodeError as error:
                raise SettingsError(f"{folder / REGISTER}: {error}, expected what this program wrote") from None
            settings = load_settings(folder / SETTINGS, FederationSettings)
            office = cls(folder, settings, register, clock)
            office._settle()
            yield office

    def unlock(self, passphrase: str) -> None:
        """Open the root's keys. Raises `SettingsError` for a wrong passphrase, or a time that is not the CA's."""
        root, key = open_root(self.folder / ROOT_FILE, passphrase)
        if root.public()[0].signing.hex() != self.register.root_key:
            raise SettingsError(f"{self.folder / ROOT_FILE} is the key file of another federation")
        revoked = {
            int(serial, 16): datetime.fromtimestamp(when, UTC) for serial, when in self.register.revoked_serials.items()
        }
        authority = Authority.load((self.folder / AUTHORITY).read_bytes(), key, revoked, self._clock)
        if authority.not_after <= self._clock():
            raise SettingsError(
                f"the certificate authority ended on {authority.not_after:%Y-%m-%d}, "
                f"now it is {self._clock():%Y-%m-%d}: expected a new federation, by `provision init`"
            )
        if authority.not_before > self._clock():
            raise SettingsError(
                f"this machine's clock says {self._clock():%Y-%m-%d %H:%M} UTC, and the federation began at "
                f"{authority.not_before:%Y-%m-%d %H:%M} UTC: set the clock, or all that is made now is of the past"
            )
        self._keys = root, authority

    def clock_fault(self) -> str:
        """What is to be said where this machine's clock is before the date of the last directory; empty if nothing."""
        known, _ = self._current()
        if known is None or known.issued_at <= self.now:
            return ""
        return (
            f"this machine's clock says {utc(self.now)}, and directory version {known.version} was signed at "
            f"{utc(known.issued_at)}. If the clock went back, set it and call this again: what is made now is dated "
            "too early. If it was ahead then, sign the directory now, and renew what was issued with it"
        )

    @property
    def authority(self) -> Authority:
        """The certificate authority. A `RuntimeError` before `unlock`."""
        return self._unlocked()[1]

    def _unlocked(self) -> tuple[Identity, Authority]:
        if self._keys is None:
            raise RuntimeError("the office is locked")
        return self._keys

    @property
    def now(self) -> int:
        """Seconds since 1970, by the office's clock."""
        return int(self._clock().timestamp())

    def ends_at(self) -> datetime:
        """When a certificate ends that is issued now."""
        return min(self._clock() + timedelta(days=self.settings.certificate_days), self.authority.not_after)

    # ----------------------------------------------------------------------- changing

    def add(self, bundle: Bundle) -> None:
        """Have a bundle written by the next `commit`."""
        self._bundles.append(bundle)

    def begin_epoch(self) -> None:
        """Have rounds numbered afresh from the next directory on: after the coordinator's key was lost."""
        self.register = msgspec.structs.replace(self.register, round_epoch=self.register.round_epoch + 1)

    def keep(self, issued: Issued) -> Card:
        """File a certificate that was issued, and what the register says of it."""
        write_folder(self.folder / CERTIFICATES, {f"{issued.serial:x}.pem": issued.certificate}, is_synced=True)
        return Card(f"{issued.serial:x}", int(issued.not_after.timestamp()))

    def certificate(self, card: Card) -> bytes:
        """A certificate that was issued, PEM."""
        return (self.folder / CERTIFICATES / f"{card.serial}.pem").read_bytes()

    def commit(self, *, sign: bool = False, on_bundle: Callable[[], None] = lambda: None) -> Directory | None:
        """Make the changes true: sign a new directory if it differs (or `sign`), write bundles, then the register.

        Returns the directory now in force; None while aggregators or the coordinator still have no keys.
        `on_bundle` is called after each bundle.
        """
        directory, signed = self._next_directory(sign)
        for serial in self.register.revoked_serials:
            self.authority.revoke(int(serial, 16))
        crl = self.authority.crl()
        pending = {str(self.folder / f"{REVOKED}.part"): str(self.folder / REVOKED)}
        write_atomically(self.folder / f"{REVOKED}.part", crl)
        if directory is not None:
            self.register = msgspec.structs.replace(self.register, version=directory.version)
        for bundle in self._bundles:
            self._complete(bundle, directory, signed, crl).write()
            pending[str(bundle.part)] = str(bundle.path)
            on_bundle()
        self.register = msgspec.structs.replace(self.register, pending=pending)
        write_atomically(self.folder / REGISTER, msgspec.json.encode(self.register))
        self._bundles.clear()
        self._settle()
        return directory

    def _next_directory(self, sign: bool) -> tuple[Directory | None, bytes]:
        """The directory after the changes, and its file: the one there is, or the next version, signed and filed."""
        if missing_services(self.settings, self.register):
            return None, b""
        known, data = self._current()
        made = make_directory(self.settings, self.register, self.now)
        if known is not None and not sign and _says_the_same(known, made):
            return known, data
        versions = self.folder / VERSIONS
        versions.mkdir(mode=0o700, exist_ok=True)
        # A version that was signed stays signed, also if its command was killed next: no other may bear its number.
        made = msgspec.structs.replace(made, version=max(0, *self.versions(), 0) + 1)
        data = sign_directory(made, self._unlocked()[0])
        write_atomically(versions / f"{made.version:06d}.json", data)
        return made, data

    def versions(self) -> list[int]:
        """Numbers of all directories that were ever signed."""
        return sorted(int(path.stem) for path in (self.folder / VERSIONS).glob("[0-9]*.json"))

    def _current(self) -> tuple[Directory | None, bytes]:
        if not self.register.version:
            return None, b""
        data = (self.folder / VERSIONS / f"{self.register.version:06d}.json").read_bytes()
        return parse_directory(data, self.register.root_key), data

    def _complete(self, bundle: Bundle, directory: Directory | None, signed: bytes, crl: bytes) -> Bundle:
        """A bundle with the public files that its party needs, as far as there is a directory."""
        name = bundle.path.stem
        files = dict(bundle.files)
        record = self.register.parties.get(name)
        if directory is not None and record is not None:
            files |= public_files(self.settings, name, record, directory, signed, crl)
        return Bundle(bundle.path, files)

    # ----------------------------------------------------------------------- settling

    def _settle(self) -> None:
        """Complete what the register says is under way, delete what it does not know, bring copies up to date."""
        if self.register.pending:
            finish(self.register.pending)
            # Before anything new lies where these did: what a killed command leaves there is not to be taken for them.
            self.register = msgspec.structs.replace(self.register, pending={})
            write_atomically(self.folder / REGISTER, msgspec.json.encode(self.register))
        for folder in (BUNDLES, RENEWALS):
            discard(self.folder / folder)
        directory, signed = self._current()
        if directory is None:
            return
        if not (self.folder / CURRENT).exists() or (self.folder / CURRENT).read_bytes() != signed:
            write_atomically(self.folder / CURRENT, signed)
        self._refresh(directory, signed)

    def _refresh(self, directory: Directory, signed: bytes) -> None:
        """Updates for every host with a broker; bundles that still lie here get the same."""
        crl = (self.folder / REVOKED).read_bytes()
        for name, record in self.register.parties.items():
            if record.revoked_at or not self._is_current(directory, name, record):
                continue
            places = (self.folder / BUNDLES / name, self.folder / BUNDLES / f"{name}.tar")
            waiting = [place for place in places if place.exists()]
            if record.role is Role.DEVICE and not waiting:
                continue
            files = public_files(self.settings, name, record, directory, signed, crl)
            if record.role is not Role.DEVICE:
                write_changed(self.folder / UPDATES / name, files)
            for place in waiting:
                renew_bundle(place, files)

    def _is_current(self, directory: Directory, name: str, record: Record) -> bool:
        """Whether settings and directory both still, or already, name a service."""
        if record.role is Role.DEVICE:
            return True
        named = {*self.settings.aggregators, self.settings.coordinator_id}
        return name in named & {*directory.aggregators, directory.coordinator_id}

    def digest(self) -> str:
        """SHA-256 of the directory file now in force, hex."""
        return hashlib.sha256((self.folder / CURRENT).read_bytes()).hexdigest()


def _says_the_same(known: Directory, made: Directory) -> bool:
    """Whether two directories differ in their version and dates alone."""
    numbers = {"version": known.version, "issued_at": known.issued_at, "expires_at": known.expires_at}
    return msgspec.structs.replace(made, **numbers) == known


def _refuse_used(folder: Path) -> None:
    """Raise `SettingsError` for a folder with anything in it but what an `init` that was killed has left."""
    if (folder / REGISTER).exists():
        raise SettingsError(f"{folder} holds a federation already, expected an empty or new folder")
    begun = {
        LOCK,
        *(f"{name}{end}" for name in (ROOT_FILE, SETTINGS, AUTHORITY, REVOKED, REGISTER) for end in ("", ".part")),
    }
    strange = sorted({place.name for place in folder.iterdir()} - begun)
    if strange:
        raise SettingsError(f"{folder} holds {', '.join(strange[:3])}, expected an empty or new folder")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with open(folder / LOCK, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SettingsError(f"{folder}: another `provision` command is at work there") from None
        yield
