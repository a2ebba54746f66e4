"""The runs on disk: configuration, metrics, checkpoints, the model.

    <state>/runs/<run-id>/config.json  metrics.jsonl  checkpoints/round-00003.safetensors  model.safetensors

`model.safetensors` is the model of the last committed round, at any moment. Models are raw tensors: nothing
in them can run.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from common import files
from common.ids import RunId
from common.tensors import Schema

CHECKPOINTS_KEPT = 3


class RunFolder:
    """One run's folder."""

    def __init__(self, state_dir: Path, run: RunId) -> None:
        self.path = state_dir / "runs" / run
        self.checkpoints = self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The model of the last committed round."""
        return self.path / "model.safetensors"

    def create(self, config: Mapping[str, object]) -> None:
        """Begin a run."""
        self.checkpoints.mkdir(parents=True)
        files.replace(self.path / "config.json", json.dumps(config, indent=2).encode())

    def record(self, facts: Mapping[str, object]) -> None:
        """Add one line to the metrics."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(facts) + "\n")

    def save(self, schema: Schema, model: NDArray[np.float32], number: int) -> None:
        """Keep a round's model, and of the checkpoints the last few."""
        data = to_safetensors(schema, model, {"round": str(number), "run": self.path.name})
        files.replace(self.checkpoints / f"round-{number:05d}.safetensors", data)
        files.replace(self.model, data)
        for old in sorted(self.checkpoints.glob("round-*.safetensors"))[:-CHECKPOINTS_KEPT]:
            old.unlink()


def to_safetensors(schema: Schema, model: NDArray[np.float32], about: dict[str, str]) -> bytes:
    """Spell a flat model, float32[d], as named tensors."""
    tensors, at = {}, 0
    for spec in schema.tensors:
        size = math.prod(spec.shape)
        tensors[spec.name] = np.asarray(model[at : at + size].reshape(spec.shape), order="C")
        at += size
    data: bytes = safetensors.numpy.save(tensors, metadata=about)
    return data
