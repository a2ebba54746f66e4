"""Updates that mean harm: what their numbers do to a model, and which manifests and counts are let in at all."""

import numpy as np
import pytest

from common import chunks, codec, limits
from common.compression import encode
from common.errors import DecodeError
from common.messages import BY_REPLY, Manifest, Reason
from common.tensors import Schema
from coordinator import strategies
from coordinator.screening import screen
from coordinator.strategies import Contribution
from support import hostile
from support.updates import update

TINY = np.float32(1e-45)  # the least that float32 holds: a denormal
HALF_TINY = 2.0**-24  # and float16
SCHEMA = Schema.from_wire([("w", "float32", [2, 2])])


def blob(name, *values):
    return bytes(encode(name, np.array(values, np.float32)))


def merged(model, delta, weights):
    """Merge the same delta with these weights into a model."""
    contributions = [Contribution(lambda: delta, weight) for weight in weights]
    return strategies.merge(strategies.resolve("fedavg"), model, contributions, ()).model


@pytest.mark.parametrize("name", ["none", "zstd"])
@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ((np.nan, 1, 1, 1), Reason.NOT_FINITE),
        ((np.inf, 1, 1, 1), Reason.NOT_FINITE),
        ((-np.inf, np.inf, 1, 1), Reason.NOT_FINITE),
        ((1e38, 1, 1, 1), Reason.TOO_LARGE),
        ((-3.4e38, 3.4e38, 3.4e38, -3.4e38), Reason.TOO_LARGE),
        ((limits.DELTA_NORM_MAX * 1.01, 0, 0, 0), Reason.TOO_LARGE),
    ],
)
def test_values_that_would_spoil_a_model_have_their_reason(name, values, reason):
    assert screen(blob(name, *values), codec=name, elements=4) is reason


@pytest.mark.parametrize("bits", [0x7C00, 0xFC00, 0x7E00, 0x7D01, 0xFFFF])
def test_half_floats_that_overflowed_on_the_way_are_not_finite_once_they_are_decoded(bits):
    data = np.array([0, 0, bits, 0], "<u2").tobytes()
    assert screen(data, codec="fp16", elements=4) is Reason.NOT_FINITE


@pytest.mark.parametrize("name", ["none", "fp16", "zstd", "fp16+zstd"])
def test_denormals_and_minus_zero_are_numbers_like_others(name):
    tiny = HALF_TINY if "16" in name else TINY
    delta = screen(blob(name, tiny, -tiny, -0.0, 0.0), codec=name, elements=4)
    assert delta.tolist() == [tiny, -tiny, 0, 0]
    assert np.isfinite(merged(np.ones(4, np.float32), delta, (1.0, 2.0))).all()


def test_what_is_within_the_norm_cannot_make_a_model_infinite():
    delta = screen(blob("none", limits.DELTA_NORM_MAX, 0, 0, 0), codec="none", elements=4)
    for weights in ((1.0, 2.0**40), (2.0**40, 2.0**40)):
        vector = merged(np.zeros(4, np.float32), delta, weights)
        assert np.abs(vector).max() <= limits.DELTA_NORM_MAX * 1.000001


def test_the_other_byte_order_is_no_way_past_the_norm():
    """It cannot be told from numbers that were meant; as such they are judged."""
    swapped = np.array([1.0, 2.0, 3.0, 4.0], ">f4").tobytes()
    assert isinstance(screen(swapped, codec="none", elements=4), np.ndarray)
    swapped = np.array([float.fromhex("0x1.fffffep-1"), 0, 0, 0], ">f4").tobytes()
    assert screen(swapped, codec="none", elements=4) in {Reason.NOT_FINITE, Reason.TOO_LARGE}


# --- counts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong", [0, -1, -(2**63), 2**40 + 1, 2**63, 1.0, 1.5, True, False, None, "10", b"1", [1], {}]
)
def test_examples_are_a_whole_number_from_one_to_the_cap(wrong):
    tree = codec.unpack(codec.encode(update("a")), bytes_max=2**16)
    with pytest.raises(DecodeError):
        codec.decode(codec.pack({**tree, "examples": wrong}), BY_REPLY)


def test_examples_that_are_no_number_are_refused():
    data = codec.encode(update("a", examples=10)).replace(
        b"\xa8examples\x0a", b"\xa8examples\xcb\x7f\xf8" + bytes(6)
    )
    assert b"\xcb\x7f\xf8" in data
    with pytest.raises(DecodeError):
        codec.decode(data, BY_REPLY)


@pytest.mark.parametrize("name", ["loss", "seconds", "local_loss", "local_accuracy", "steps", "round"])
@pytest.mark.parametrize(
    "bits", ["7ff8000000000000", "7ff0000000000000", "fff0000000000000", "7fefffffffffffff"]
)
def test_a_number_in_an_update_is_finite_and_within_its_bounds(name, bits):
    tree = {**codec.unpack(codec.encode(update("a")), bytes_max=2**16), name: 0.5}
    plain = codec.pack(tree)
    data = plain.replace(b"\xcb" + bytes.fromhex("3fe0000000000000"), b"\xcb" + bytes.fromhex(bits))
    assert data != plain
    with pytest.raises(DecodeError):
        codec.decode(data, BY_REPLY)


# --- manifests and shapes: nothing is allocated for what cannot be --------------------------------


@pytest.mark.parametrize(
    "changed",
    [
        {"size": 2**63},
        {"size": -1},
        {"size": 8.0},
        {"size": limits.BLOB_BYTES_MAX + 1},
        {"size": 2**53, "chunk": limits.CHUNK_BYTES_MIN},
        {"chunk": 0},
        {"chunk": 1},
        {"chunk": -1024},
        {"chunk": 2**40},
        {"hashes": b""},
        {"hashes": b"h" * 15},
        {"hashes": b"h" * 17},
        {"hashes": b"h" * 2**19},
        {"digest": "../../../../etc/passwd"},
        {"digest": "A" * 64},
        {"digest": "b" * 64 + "\n"},
        {"schema": "x"},
    ],
)
def test_a_manifest_that_cannot_be_is_refused_before_anything_is_allocated(changed):
    tree = codec.unpack(codec.encode(update("a")), bytes_max=2**16)
    data = codec.pack({**tree, "delta": {**tree["delta"], **changed}})
    with hostile.measured() as peak:
        assert problem(data) is not None
    assert peak[0] < 3 * 2**20


def problem(data: bytes):
    """Read an update's manifest as the coordinator does."""
    try:
        return chunks.check(codec.decode(data, BY_REPLY).delta)
    except DecodeError as error:
        return error


@pytest.mark.parametrize(
    "shape",
    [[-1], [0], [2**63], [0, 2**63], [-(2**31), -(2**31)], [2**32, 2**32], [limits.MODEL_ELEMENTS_MAX + 1]],
)
def test_a_shape_that_cannot_be_is_refused_before_anything_is_allocated(shape):
    with hostile.measured() as peak, pytest.raises(DecodeError):
        Schema.from_wire([("w", "float32", shape)])
    assert peak[0] < 2**20


@pytest.mark.parametrize(
    "dtype", [">f4", "<f4", "float32 ", "O", "object", "U4", "S4", "V8", "int8", "bool", ""]
)
def test_a_type_is_one_of_four_names(dtype):
    with pytest.raises(DecodeError):
        Schema.from_wire([("w", dtype, [2])])


@pytest.mark.parametrize(
    "wire",
    [
        [("w", "float32", [4])],
        [("w", "float32", [2, 2]), ("b", "float32", [1])],
        [("v", "float32", [2, 2])],
        [("w", "float64", [2, 2])],
        [("w", "float32", [2, 2, 1])],
    ],
)
def test_another_schema_has_another_digest_so_that_its_updates_are_refused_unfetched(wire):
    assert Schema.from_wire(wire).digest != SCHEMA.digest


def test_the_elements_of_a_blob_are_those_of_the_schema_whatever_its_manifest_says():
    for elements in (3, 5, 0, 2**28):
        assert screen(blob("none", 1, 2, 3, 4), codec="none", elements=elements) is Reason.WRONG_SIZE


def test_a_manifest_says_nothing_of_objects():
    assert set(Manifest.__struct_fields__) == {"digest", "size", "chunk", "hashes", "codec", "schema"}
