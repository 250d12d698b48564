"""A bundle: everything one party needs, in a folder or a tar file. Files are 0600, folders 0700.

What is written beside (`NAME.part`) becomes visible only once the register knows of it, so a command that is killed
half-way leaves either nothing or something that the next command completes. A bundle that a loss of power has damaged
is made anew, with `--replace`. What exists once (a party's keys where it runs, certificates at the root) is synced.
"""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from fedpruneshare.errors import SettingsError
from fedpruneshare.storage import sync_folder

#: Path inside the bundle -> contents.
Files = Mapping[str, bytes]
_PART = ".part"


@dataclass(frozen=True)
class Bundle:
    """One bundle under way: where it will lie and what is in it. A path that ends in `.tar` becomes a tar file."""

    path: Path
    files: Files = field(repr=False)

    @property
    def part(self) -> Path:
        """Where it lies until it is complete."""
        return self.path.with_name(self.path.name + _PART)

    def write(self) -> None:
        """Write it beside its place; what an earlier try left there goes."""
        _remove(self.part)
        self.part.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.path.suffix == ".tar":
            write_private(self.part, _tar(self.path.stem, self.files))
        else:
            write_folder(self.part, self.files)


def finish(pending: Mapping[str, str]) -> None:
    """Move what is complete to its place, whatever lay there before. What has been moved already is passed over."""
    for part, place in pending.items():
        if Path(part).exists():
            if Path(part).is_dir():
                _remove(Path(place))
            os.replace(part, place)


def discard(folder: Path) -> None:
    """Delete bundles that were under way when their command was killed. What is to stay has been moved before."""
    for left in folder.glob(f"*{_PART}"):
        _remove(left)


def write_folder(folder: Path, files: Files, *, is_synced: bool = False) -> None:
    """Write files below a folder (0700), each 0600 and in one step; with `is_synced` they outlast a loss of power."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, data in files.items():
        place = folder / name
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(place, data, is_synced=is_synced)


def write_changed(folder: Path, files: Files) -> None:
    """As `write_folder`, for the files that are not so already."""
    known = {name: (folder / name).read_bytes() for name in files if (folder / name).is_file()}
    write_folder(folder, {name: data for name, data in files.items() if known.get(name) != data})


def renew_bundle(path: Path, files: Files) -> None:
    """Bring files of a bundle that waits to be carried, folder or tar, up to date; one that does not read stays."""
    if path.is_dir():
        write_changed(path, files)
        return
    with suppress(SettingsError):
        known = read_bundle(path)
        if any(known.get(name) != data for name, data in files.items()):
            write_private(path, _tar(path.stem, known | dict(files)))


def write_private(path: Path, data: bytes, *, is_synced: bool = False) -> None:
    """A new file that only its owner can read, renamed into place. Root leaves a file to whom it belonged."""
    partial = path.with_name(f".{path.name}.new")
    partial.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
            if is_synced:
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        error.filename = error.filename or str(path)  # a full disk does not say which
        raise
    if os.geteuid() == 0 and path.exists():
        known = path.stat()
        os.chown(partial, known.st_uid, known.st_gid)
    partial.replace(path)
    if is_synced:
        sync_folder(path.parent)


def read_bundle(path: Path) -> dict[str, bytes]:
    """The files of a bundle, folder or tar. Raises `SettingsError` if it is neither, or names files outside itself."""
    try:
        if path.is_dir():
            found = (one for one in sorted(path.rglob("*")) if one.is_file())
            return {one.relative_to(path).as_posix(): one.read_bytes() for one in found}
        with tarfile.open(path, "r:") as archive:
            return dict(_members(archive))
    except (OSError, tarfile.TarError) as error:
        raise SettingsError(f"bundle {path}: {error}, expected a folder or tar file of `provision`") from None


def _members(archive: tarfile.TarFile) -> Iterable[tuple[str, bytes]]:
    for member in archive.getmembers():
        if member.isdir():
            continue
        inside = Path(*Path(member.name).parts[1:])
        stream = archive.extractfile(member) if member.isreg() and member.size < 2**26 else None
        if stream is None or inside.is_absolute() or ".." in inside.parts or not inside.name:
            raise SettingsError(f"bundle holds {member.name!r}, expected plain files inside one folder")
        yield inside.as_posix(), stream.read()


def _tar(name: str, files: Files) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        folders = {name, *(f"{name}/{folder}" for path in files if (folder := str(Path(path).parent)) != ".")}
        for folder in sorted(folders):
            made = tarfile.TarInfo(folder)
            made.type, made.mode = tarfile.DIRTYPE, 0o700
            archive.addfile(made)
        for path, data in files.items():
            made = tarfile.TarInfo(f"{name}/{path}")
            made.mode, made.size = 0o600, len(data)
            archive.addfile(made, io.BytesIO(data))
    return buffer.getvalue()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


__all__ = [
    "Bundle",
    "Files",
    "discard",
    "finish",
    "read_bundle",
    "renew_bundle",
    "write_changed",
    "write_folder",
    "write_private",
]
