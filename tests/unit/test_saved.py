"""Saved models: read back as they were written, and in no other spelling."""

import json

import numpy as np
import pytest

from common.errors import DecodeError
from common.tensors import Schema, TensorSpec
from coordinator import saved
from coordinator.registry import to_safetensors

SCHEMA = Schema(
    (TensorSpec("w", "float32", (2, 3)), TensorSpec("é\n", "bfloat16", ()), TensorSpec("a", "float32", (1,)))
)
MODEL = np.arange(8, dtype=np.float32)
ABOUT = {"round": "12", "run": "r"}


def spelled(tree, *, rest=bytes(32), pad=None):
    header = json.dumps(tree, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8) if pad is None else pad
    return len(header).to_bytes(8, "little") + header + rest


def tensor(start, stop, shape, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def tree(**changes):
    """What is fine, with changes."""
    fine = {
        "__metadata__": ABOUT,
        "w": tensor(0, 24, [2, 3]),
        "é\n": tensor(24, 28, []),
        "a": tensor(28, 32, [1]),
    }
    return {name: value for name, value in (fine | changes).items() if value is not None}


def test_a_model_is_read_in_the_order_of_its_schema():
    model, number = saved.read(to_safetensors(SCHEMA, MODEL, ABOUT), SCHEMA, "r")
    assert model.tolist() == MODEL.tolist()
    assert number == 12


def test_what_is_spelled_by_hand_is_read_too():
    assert saved.read(spelled(tree()), SCHEMA, "r")[1] == 12


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(8),
        b"\xff" * 100,
        spelled([]),
        spelled(7),
        spelled(tree(), rest=bytes(31)),
        spelled(tree(), rest=bytes(36)),
        spelled(tree(), pad=b"\t" * 8),
        spelled(tree(), pad=b" " * 16),
        spelled(tree(w=None)),
        spelled(tree(b=tensor(0, 0, [0]))),
        spelled(tree(w=tensor(0, 24, [3, 2]))),
        spelled(tree(w=tensor(0, 24, [2, 3], "F64"))),
        spelled(tree(w=tensor(0, 20, [2, 3]))),
        spelled(tree(a=tensor(24, 32, [1]))),
        spelled(tree(a=tensor(24, 28, [1]))),
        spelled(tree(w=tensor(4, 28, [2, 3]))),
        spelled(tree(w=tensor(-24, 0, [2, 3]))),
        spelled(tree(w=tensor(0, 24, [2, 3]) | {"more": 1})),
        spelled(tree(__metadata__=None)),
        spelled(tree(__metadata__={"round": "12", "run": "q"})),
        spelled(tree(__metadata__={"round": "012", "run": "r"})),
        spelled(tree(__metadata__={"round": "-1", "run": "r"})),
        spelled(tree(__metadata__=ABOUT | {"more": "x"})),
        spelled(tree(__metadata__={"round": 12, "run": "r"})),
        spelled(tree()).replace(b'"run"', b'"\xffun"'),
        spelled(tree()).replace(b'"round":"12"', b'"round":[12]'),
    ],
)
def test_what_is_spelled_otherwise_is_refused(data):
    with pytest.raises(DecodeError):
        saved.read(data, SCHEMA, "r")
