"""The runs on disk: configuration, metrics, transcript, checkpoints, the model.

    <state>/runs/<run-id>/config.json  metrics.jsonl  transcript.jsonl  model.safetensors
                          checkpoints/round-00003.safetensors  blobs/<sha256>

`model.safetensors` is the model of the last committed round, at any moment. Models are raw tensors: nothing
in them can run. The two files of lines are copies of what the ledger holds: `follow` mends them after a crash.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from common import files
from common.ids import Digest, RunId
from common.tensors import Schema

CHECKPOINTS_KEPT = 3


class RunFolder:
    """One run's folder."""

    def __init__(self, state_dir: Path, run: RunId) -> None:
        self.path = state_dir / "runs" / run
        self.checkpoints = self.path / "checkpoints"
        self.blobs = self.path / "blobs"
        self.config = self.path / "config.json"
        self.metrics = self.path / "metrics.jsonl"
        self.transcript = self.path / "transcript.jsonl"

    @property
    def model(self) -> Path:
        """The model of the last committed round."""
        return self.path / "model.safetensors"

    def create(self, config: Mapping[str, object]) -> None:
        """Begin a run."""
        self.path.mkdir(parents=True, exist_ok=True)
        files.replace(self.config, json.dumps(config, indent=2).encode())

    def save(self, schema: Schema, model: NDArray[np.float32], number: int) -> None:
        """Keep a round's model, and of the checkpoints the last few."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        data = to_safetensors(schema, model, {"round": str(number), "run": self.path.name})
        files.replace(self.checkpoints / f"round-{number:05d}.safetensors", data)
        files.replace(self.model, data)
        found = self.checkpoints.glob("round-*.safetensors")
        for old in sorted(found, key=lambda path: (len(path.name), path.name))[:-CHECKPOINTS_KEPT]:
            old.unlink()

    def keep(self, digest: Digest, data: bytes) -> None:
        """Keep a blob for whoever audits the run."""
        self.blobs.mkdir(exist_ok=True)
        if not (self.blobs / digest).exists():
            files.replace(self.blobs / digest, data)

    def follow(self, metrics: Sequence[bytes], transcript: Sequence[bytes]) -> None:
        """Let the two files be these lines. Raises: StorageError."""
        with files.said_plainly():
            self.path.mkdir(parents=True, exist_ok=True)
            follow(self.metrics, metrics)
            follow(self.transcript, transcript)

    def append(self, metrics: Sequence[bytes], transcript: Sequence[bytes]) -> None:
        """Add these lines to the two files. Raises: StorageError."""
        with files.said_plainly():
            append(self.metrics, metrics)
            append(self.transcript, transcript)


def follow(path: Path, lines: Sequence[bytes]) -> None:
    """Let a file be these lines: add what is missing at its end; where it says anything else, write it anew."""
    data = b"".join(line + b"\n" for line in lines)
    size = path.stat().st_size if path.exists() else 0
    with path.open("a+b") as file:
        file.seek(0)
        is_beginning = data.startswith(file.read())
        if is_beginning:
            file.write(data[size:])
            file.flush()
            os.fsync(file.fileno())
    if not is_beginning:
        files.replace(path, data)


def append(path: Path, lines: Sequence[bytes]) -> None:
    """Add lines to a file."""
    with path.open("ab") as file:
        file.write(b"".join(line + b"\n" for line in lines))
        file.flush()
        os.fsync(file.fileno())


def to_safetensors(schema: Schema, model: NDArray[np.float32], about: dict[str, str]) -> bytes:
    """Spell a flat model, float32[d], as named tensors."""
    tensors, at = {}, 0
    for spec in schema.tensors:
        size = math.prod(spec.shape)
        tensors[spec.name] = np.asarray(model[at : at + size].reshape(spec.shape), order="C")
        at += size
    data: bytes = safetensors.numpy.save(tensors, metadata=about)
    return data
