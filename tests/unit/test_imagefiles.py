import gzip
import hashlib
import io
import tarfile
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from common import imagefiles
from common.errors import DataMissingError
from common.imagefiles import CIFAR10, FASHION_MNIST, MNIST, ImageFiles, read_cifar10, read_idx
from support.idx import LABELS, PIXELS, idx, put_idx
from support.require import need

NOWHERE = "http://127.0.0.1:9/"  # the port of `discard`: refused at once


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fedmq" / "datasets"


@pytest.fixture
def files() -> ImageFiles:
    """MNIST's names, as published by nobody."""
    return replace(MNIST, mirrors=(NOWHERE,))


@pytest.fixture
def served(tmp_path):
    """Put MNIST's files on a web server of our own; yields the folder and its address."""
    folder = put_idx(tmp_path / "served")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("below", ["", "mnist", "MNIST/raw"])
def test_idx_files_are_read_where_data_dir_has_them(tmp_path, files, packed, below):
    put_idx(tmp_path / "data" / below, packed=packed)
    for test in (True, False):
        pixels, labels = read_idx(files, tmp_path / "data", test=test)
        assert np.array_equal(pixels, PIXELS[:, None])
        assert labels.dtype == np.int64
        assert labels.tolist() == LABELS.tolist()


def test_data_dir_goes_before_the_package_and_that_before_the_cache(tmp_path, files, cache):
    files = replace(files, packaged=tmp_path / "usr")
    put_idx(cache / "MNIST/raw", half=slice(1))
    assert len(read_idx(files, None, test=True)[1]) == 1
    put_idx(tmp_path / "usr", half=slice(2))
    assert len(read_idx(files, None, test=True)[1]) == 2
    put_idx(tmp_path / "data", half=slice(3))
    assert len(read_idx(files, tmp_path / "data", test=True)[1]) == 3


def test_what_is_missing_and_cannot_be_downloaded_is_explained(tmp_path, files, cache):
    with pytest.raises(DataMissingError) as caught:
        read_idx(files, tmp_path / "data", test=False)
    message = str(caught.value)
    for hint in (
        NOWHERE,
        str(tmp_path / "data"),
        str(cache / "MNIST/raw"),
        "t10k-labels-idx1-ubyte.gz",
        "--data-dir",
        "--dataset digits",
    ):
        assert hint in message
    assert caught.value.exit_code == 66
    assert list((cache / "MNIST/raw").iterdir()) == []


def test_a_download_is_checked_kept_and_not_repeated(files, served, cache):
    folder, address = served
    md5 = {
        path.name: hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        for path in folder.iterdir()
    }
    published = replace(files, md5=md5, mirrors=(NOWHERE, address))  # the second mirror helps out
    assert read_idx(published, None, test=False)[1].tolist() == LABELS.tolist()
    assert sorted(path.name for path in (cache / "MNIST/raw").iterdir()) == sorted(md5)
    assert len(read_idx(replace(published, mirrors=(NOWHERE,)), None, test=True)[1]) == 5


def test_a_download_that_is_not_what_was_published_is_not_kept(files, served, cache):
    with pytest.raises(DataMissingError, match="has the MD5"):
        read_idx(replace(files, mirrors=(served[1],)), None, test=False)
    assert list((cache / "MNIST/raw").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("train-images-idx3-ubyte.gz", b"not gzip"),
        ("train-images-idx3-ubyte.gz", gzip.compress(idx(PIXELS))[:-20]),
        ("train-images-idx3-ubyte.gz", gzip.compress(b"")),
        ("train-images-idx3-ubyte.gz", gzip.compress(b"\0\0\x08\x03\0")),
        ("train-images-idx3-ubyte.gz", gzip.compress(idx(LABELS))),
        ("train-images-idx3-ubyte.gz", gzip.compress(idx(PIXELS)[:-1])),
        ("train-images-idx3-ubyte.gz", gzip.compress(b"\0\0\x08\x03" + b"\xff" * 12 + b"x")),
        ("train-images-idx3-ubyte.gz", gzip.compress(idx(PIXELS[:4]))),
        ("train-labels-idx1-ubyte.gz", gzip.compress(b"\0\0\x0d\x01\0\0\0\0")),
    ],
)
def test_damaged_idx_files_are_named(tmp_path, files, name, data):
    (put_idx(tmp_path) / name).write_bytes(data)
    with pytest.raises(DataMissingError, match=r"damaged|cannot be read"):
        read_idx(files, tmp_path, test=False)


def cifar_batches(images: int = 2) -> dict[str, bytes]:
    """Make each batch of its own: the label is the batch, red, green and blue are 1, 2 and 3 times it."""
    names = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]
    image = {
        name: bytes([n]) + b"".join(bytes([n * colour]) * 1024 for colour in (1, 2, 3))
        for n, name in enumerate(names)
    }
    return {name: data * images for name, data in image.items()}


def put_cifar(folder: Path, batches: dict[str, bytes], *, packed: bool) -> None:
    if packed:
        with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as tar:
            for name, data in batches.items():
                member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    else:
        (folder / "cifar-10-batches-bin").mkdir()
        for name, data in batches.items():
            (folder / "cifar-10-batches-bin" / name).write_bytes(data)


@pytest.mark.parametrize("packed", [True, False])
def test_cifar10_is_read_from_its_archive_or_its_folder(tmp_path, packed):
    put_cifar(tmp_path, cifar_batches(), packed=packed)
    pixels, labels = read_cifar10(CIFAR10, tmp_path, test=False)
    assert pixels.shape == (10, 3, 32, 32)
    assert labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert pixels[-1, :, 0, 0].tolist() == [4, 8, 12]
    assert read_cifar10(CIFAR10, tmp_path, test=True)[1].tolist() == [5, 5]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    "spoil", [{"data_batch_3.bin": b"short"}, {f"data_batch_{n}.bin": b"" for n in range(1, 6)}]
)
def test_damaged_cifar10_is_named(tmp_path, packed, spoil):
    put_cifar(tmp_path, cifar_batches() | spoil, packed=packed)
    with pytest.raises(DataMissingError, match="damaged"):
        read_cifar10(CIFAR10, tmp_path, test=False)


@pytest.mark.parametrize("data", [b"not an archive", b"\x1f\x8b\x08\0"])
def test_an_archive_that_cannot_be_opened_is_named(tmp_path, data):
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(data)
    with pytest.raises(DataMissingError, match="cannot be read"):
        read_cifar10(CIFAR10, tmp_path, test=False)


def test_an_archive_without_the_batches_is_named(tmp_path):
    put_cifar(tmp_path, {"readme.html": b""}, packed=True)
    with pytest.raises(DataMissingError, match="test_batch"):
        read_cifar10(CIFAR10, tmp_path, test=True)


def test_debians_package_is_found():
    need("dataset-fashion-mnist")
    pixels, labels = read_idx(replace(FASHION_MNIST, mirrors=(NOWHERE,)), None, test=True)
    assert pixels.shape == (10_000, 1, 28, 28)
    assert np.bincount(labels).tolist() == [1000] * 10


def test_the_cache_is_where_the_desktop_wants_it(monkeypatch, cache):
    assert imagefiles.cache_dir() == cache
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert imagefiles.cache_dir() == Path.home() / ".cache/fedmq/datasets"
