"""Files in the IDX format, and a tiny MNIST made of them."""

import gzip
import struct
from pathlib import Path

import numpy as np

from common.imagefiles import MNIST

PIXELS = np.arange(5 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(5, 28, 28)
LABELS = np.array([3, 1, 4, 1, 5], np.uint8)


def idx(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def put_idx(folder: Path, *, packed: bool = True, half: slice = slice(None)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in MNIST.md5:
        data = idx(PIXELS[half] if "images" in name else LABELS[half])
        path = folder / (name if packed else name.removesuffix(".gz"))
        path.write_bytes(gzip.compress(data) if packed else data)
    return folder
