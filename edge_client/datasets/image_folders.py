"""Image folders: `train/CLASS/*.png` and `test/CLASS/*.jpg`, as a folder or a .tar, .tar.gz or .tar.zst of one.

Nothing is unpacked to disk. What is in a file decides its form, not its name. Images come out in the order of (class,
name), so every copy of a folder gives the same arrays. They need Pillow, which is imported here alone.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import shutil
import subprocess
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from edge_client.datasets.image_sets import Images, ImageSet
from fedpruneshare.errors import DataError

PARTS = ("train", "test")
ENDINGS = (".png", ".jpg", ".jpeg")
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst")

IMAGE_BYTES = 256 << 10
"""A longer file is refused: an image of 32 x 32 takes some 3 kB even where nothing is compressed."""

_OTHER_FILES = 10_000
_INSTALL = "pip install 'fedpruneshare[images]'"

Report = Callable[[str, int, int], None]
Entry = tuple[PurePosixPath, bytes]


def is_archive(path: Path) -> bool:
    """Whether a name ends as one of the archives that can be read."""
    return path.name.endswith(ARCHIVES)


def read_image_folder(source: Path, of: ImageSet, report: Report) -> Images:
    """Every image of a folder or an archive of one, decoded.

    Raises `DataError` where Pillow (or, for .zst, what unpacks it) is missing, an image is damaged or of another size,
    a class is not known, a path leads outside, or there are more or fewer images than the set has.
    """
    decode = _decoder(of)
    kept: dict[str, list[tuple[int, str, NDArray[np.uint8]]]] = {part: [] for part in PARTS}
    forms, done, total = set[str](), 0, sum(of.counts)
    for path, data in _entries(source):
        part, label = _place_of(path, of)
        if not part:
            continue
        if done == total:
            raise DataError(f"{source} holds more than the {total} images of {of.title}")
        pixels, form = decode(data, f"{source}: {path}")
        kept[part].append((label, path.name, pixels))
        forms.add(form)
        done += 1
        if done % 1000 == 0:
            report("decode", done, total)
    for part, count in zip(PARTS, of.counts, strict=True):
        if len(kept[part]) != count:
            raise DataError(f"{source} holds {len(kept[part])} images in {part}/, where {of.title} has {count}")
    form = "JPEG" if "JPEG" in forms else "PNG"  # one lossy image makes it another data set than the published one
    return Images(*_arrays(kept["train"]), *_arrays(kept["test"]), form=form).check(of, str(source))


def _arrays(entries: list[tuple[int, str, NDArray[np.uint8]]]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    entries.sort(key=lambda entry: entry[:2])
    labels = np.array([label for label, _, _ in entries], np.uint8)
    return np.stack([pixels for _, _, pixels in entries]), labels


def _place_of(path: PurePosixPath, of: ImageSet) -> tuple[str, int]:
    """(part, label) of `…/train/CLASS/NAME.png`, ("", 0) for any other file."""
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"archive names {path}, a path that leads outside of it")
    if path.suffix.lower() not in ENDINGS or len(path.parts) < 3 or path.parts[-3] not in PARTS:
        return "", 0
    name = path.parts[-2]
    for names in (of.classes, [str(label) for label in range(len(of.classes))]):
        if name in names:
            return path.parts[-3], list(names).index(name)
    raise DataError(f"{path} is of class {name!r}, expected one of {list(of.classes)}")


def _decoder(of: ImageSet) -> Callable[[bytes, str], tuple[NDArray[np.uint8], str]]:
    """A function (file, name for messages) -> (pixels uint8[*shape], "PNG" or "JPEG")."""
    try:
        from PIL import Image
    except ImportError:
        raise DataError(f"images are decoded by Pillow, which is not installed: {_INSTALL}") from None
    size, mode = (of.shape[1], of.shape[0]), "RGB" if len(of.shape) == 3 else "L"

    def decode(data: bytes, name: str) -> tuple[NDArray[np.uint8], str]:
        try:
            with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
                if image.size != size:  # known from the header: nothing is decoded yet
                    raise DataError(f"{name} is an image of {image.size}, expected {size}")
                return np.asarray(image.convert(mode), np.uint8), str(image.format)
        except DataError:
            raise
        except Exception as error:  # decoders meet damaged files with errors of many kinds
            raise DataError(f"{name} is not a readable PNG or JPEG: {error}") from error

    return decode


# --------------------------------------------------------------------------- where the files come from


def _entries(source: Path) -> Iterator[Entry]:
    if source.is_dir():
        return _files_below(source)
    if is_archive(source):
        return _members_of(source)
    raise DataError(f"{source} is neither a folder nor one of {', '.join(ARCHIVES)}")


def _files_below(folder: Path) -> Iterator[Entry]:
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in ENDINGS or not path.is_file():
            continue
        try:
            with path.open("rb") as stream:
                data = stream.read(IMAGE_BYTES + 1)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error}") from error
        _check_size(len(data), path)
        yield PurePosixPath(path.relative_to(folder).as_posix()), data


def _members_of(archive: Path) -> Iterator[Entry]:
    others = 0
    try:
        with _tar_stream(archive) as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                if not member.isfile() or path.suffix.lower() not in ENDINGS:
                    others += 1
                    if others > _OTHER_FILES or member.size > IMAGE_BYTES:
                        raise DataError(f"{archive} holds {path} and {others - 1} more that are no images")
                    continue
                _check_size(member.size, path)
                stream = tar.extractfile(member)
                yield path, stream.read() if stream else b""
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise DataError(f"{archive} is not a readable archive: {error}") from error


def _check_size(size: int, name: object) -> None:
    if size > IMAGE_BYTES:
        raise DataError(f"{name} is longer than {IMAGE_BYTES} bytes, expected a small image")


@contextmanager
def _tar_stream(archive: Path) -> Iterator[tarfile.TarFile]:
    if not archive.name.endswith((".zst", ".tzst")):
        with tarfile.open(archive, "r|*") as tar:
            yield tar
        return
    with _unpacked(archive) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
        yield tar


@contextmanager
def _unpacked(archive: Path) -> Iterator[IO[bytes]]:
    """The bytes of a .zst, by the package `zstandard` or the program `zstd`."""
    if importlib.util.find_spec("zstandard"):
        zstandard: Any = importlib.import_module("zstandard")
        try:
            with archive.open("rb") as packed, zstandard.ZstdDecompressor().stream_reader(packed) as stream:
                yield stream
        except zstandard.ZstdError as error:
            raise DataError(f"{archive} is not a readable archive: {error}") from error
        return
    if not shutil.which("zstd"):
        raise DataError(f"{archive}: .zst needs the package zstandard ({_INSTALL}) or the program zstd")
    command = ["zstd", "--decompress", "--stdout", "--quiet", "--", str(archive)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        try:
            yield process.stdout
            process.stdout.read()  # what follows the archive's end, so that the program can end by itself
            if process.wait():
                raise DataError(f"{archive}: zstd says {process.stderr.read().decode(errors='replace').strip()}")
        finally:
            process.kill()
