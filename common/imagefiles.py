"""The files of well-known image sets: where they lie, how to get them, how to read them.

    --data-dir -> the distribution's package -> the cache -> a download into the cache

Formats: IDX (MNIST and its kin) and CIFAR-10's binary version. CIFAR-10's "python" version, which torchvision
uses, is pickled: to read it is to run whatever is in it, so it is not read.
Shapes:  images uint8[n, channels, height, width], labels int64[n].
"""

import gzip
import hashlib
import os
import shutil
import tarfile
import tempfile
import urllib.request
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common import limits
from common.errors import DataMissingError

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ImageFiles:
    """One data set's files, and who has them."""

    name: str
    folders: tuple[str, ...]  # below --data-dir and below the cache; downloads go into the last
    md5: Mapping[str, str]  # file name -> as its publisher states it
    mirrors: tuple[str, ...]
    packaged: Path | None = None  # where a distribution's package puts them


_IDX = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_CIFAR10 = "cifar-10-binary.tar.gz"
_CIFAR10_TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))

MNIST = ImageFiles(
    name="mnist",
    folders=("mnist", "MNIST/raw"),
    md5={
        "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
    },
    mirrors=(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
)
FASHION_MNIST = ImageFiles(
    name="fashion-mnist",
    folders=("fashion-mnist", "FashionMNIST/raw"),
    md5={
        "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
    },
    mirrors=("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
    packaged=Path("/usr/share/datasets/fashion-mnist"),  # Debian's dataset-fashion-mnist
)
CIFAR10 = ImageFiles(
    name="cifar10",
    folders=("cifar10",),
    md5={_CIFAR10: "c32a1d4ab5d03f1284b67883e8d87530"},
    mirrors=("https://www.cs.toronto.edu/~kriz/",),
)


def cache_dir() -> Path:
    """Say where downloads are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fedmq" / "datasets"


def read_idx(files: ImageFiles, data_dir: Path | None, *, test: bool) -> tuple[Pixels, Labels]:
    """Read one half of MNIST or its kin. Raises: DataMissingError."""
    images, labels = _IDX[2:] if test else _IDX[:2]
    folder = _locate(files, data_dir, plain=_IDX)
    pixels = _idx_array(folder / images, dimensions=3)
    classes = _idx_array(folder / labels, dimensions=1)
    if len(pixels) != len(classes):
        raise DataMissingError(f"{folder} is damaged: {len(pixels)} images, {len(classes)} labels")
    return pixels[:, np.newaxis], classes.astype(np.int64)


def read_cifar10(files: ImageFiles, data_dir: Path | None, *, test: bool) -> tuple[Pixels, Labels]:
    """Read one half of CIFAR-10, from its archive or the folder that is in it. Raises: DataMissingError."""
    names = ("test_batch.bin",) if test else _CIFAR10_TRAIN
    inside = "cifar-10-batches-bin"
    folder = _locate(
        files, data_dir, plain=[f"{inside}/{name}" for name in (*_CIFAR10_TRAIN, "test_batch.bin")]
    )
    archive = folder / _CIFAR10
    if archive.exists():
        raw = _members(archive, [f"{inside}/{name}" for name in names])
    else:
        raw = b"".join((folder / inside / name).read_bytes() for name in names)
    if len(raw) % 3073 or not raw:
        raise DataMissingError(
            f"{folder} is damaged: CIFAR-10 has 3073 bytes an image, not {len(raw)} in all"
        )
    rows = np.frombuffer(raw, np.uint8).reshape(-1, 3073)  # label, then 32 x 32 of red, green, blue
    return rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0].astype(np.int64)


def _locate(files: ImageFiles, data_dir: Path | None, plain: Sequence[str]) -> Path:
    """Find the folder that has all files, packed or `plain`; download them if there is none."""
    given = [] if data_dir is None else [*(data_dir / folder for folder in files.folders), data_dir]
    packaged = [] if files.packaged is None else [files.packaged]
    places = [*given, *packaged, *(cache_dir() / folder for folder in files.folders)]
    for place in places:
        if all((place / name).is_file() for name in files.md5) or all(
            (place / name).is_file() for name in plain
        ):
            return place
    return _download(files, places)


def _download(files: ImageFiles, places: Sequence[Path]) -> Path:
    target = places[-1]
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name, md5 in files.md5.items():
            _fetch([mirror + name for mirror in files.mirrors], md5, target / name)
    except (OSError, HTTPException) as error:
        raise DataMissingError(
            f"data set {files.name} is not in {', '.join(map(str, places))}, and the download from "
            f"{' or '.join(files.mirrors)} failed: {error}. Put {', '.join(files.md5)} into {target}, "
            "or pass --data-dir with the folder that has them, or use --dataset digits, which needs no files"
        ) from error
    return target


def _fetch(urls: Sequence[str], md5: str, target: Path) -> None:
    """Download one file; whole and as published it appears, or not at all. Raises: OSError, HTTPException.

    torchvision's helper would wait for ever on a silent server, and writes progress to the screen.
    """
    *mirrors, last = urls
    for url in mirrors:
        try:
            return _fetch_from(url, md5, target)
        except (OSError, HTTPException):
            continue  # the next mirror; what the last one says is told
    return _fetch_from(last, md5, target)


def _fetch_from(url: str, md5: str, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".download-") as scratch:
        part = Path(scratch) / target.name
        with (
            urllib.request.urlopen(url, timeout=limits.DOWNLOAD_SILENCE_S) as response,  # noqa: S310  # our own table's
            part.open("wb") as file,
        ):
            shutil.copyfileobj(response, file)
        with part.open("rb") as file:
            found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if found != md5:
            raise OSError(f"{url} has the MD5 {found}, not {md5}")
        part.replace(target)


def _idx_array(path: Path, dimensions: int) -> Pixels:
    """Read an IDX file: 0, 0, type 8 (bytes), dimensions; then their sizes, big-endian; then the values."""
    packed = path.with_name(f"{path.name}.gz")
    try:
        data = gzip.decompress(packed.read_bytes()) if packed.exists() else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataMissingError(f"{path} cannot be read: {error}") from error
    start = 4 + 4 * dimensions
    if data[:4] != bytes([0, 0, 8, dimensions]) or len(data) < start:
        raise DataMissingError(f"{path} is damaged: not an IDX file of {dimensions} dimensions")
    shape = np.frombuffer(data, ">u4", count=dimensions, offset=4).tolist()
    values = np.frombuffer(data, np.uint8, offset=start)
    if values.size != np.prod(shape, dtype=object):
        raise DataMissingError(f"{path} is damaged: {values.size} values where {shape} were announced")
    return values.reshape(shape)


def _members(archive: Path, names: Sequence[str]) -> bytes:
    """Read files out of an archive without unpacking it."""
    try:
        with tarfile.open(archive) as tar:
            files = [tar.extractfile(name) for name in names]
            return b"".join(file.read() for file in files if file is not None)
    except (OSError, EOFError, KeyError, tarfile.TarError, zlib.error) as error:
        raise DataMissingError(f"{archive} cannot be read: {error}") from error
