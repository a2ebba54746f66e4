import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from common.compression import CODECS, RangeError, decode, encode
from common.errors import ConfigError, DecodeError
from common.inflate import deflate, frame_bytes_max, inflate

DEFLATED = [
    ("none", "zstd", 4),
    ("fp16", "fp16+zstd", 2),
    ("bf16", "bf16+zstd", 2),
    *[(name, f"{name}+zstd", 1) for name in ("int8", "int4", "topk-1", "topk-10", "eden1", "eden4")],
]
vectors = hnp.arrays(np.float32, st.integers(1, 50), elements=st.floats(width=32))
halves = hnp.arrays(np.float32, st.integers(1, 50), elements=st.floats(-65504, 65504, width=32))


@pytest.mark.parametrize("codec", ["none", "zstd"])
@given(vectors)
def test_none_and_zstd_are_exact_to_the_bit(codec, vector):
    assert decode(codec, encode(codec, vector), vector.size).tobytes() == vector.tobytes()


@pytest.mark.parametrize("codec", ["fp16", "fp16+zstd"])
@given(halves)
def test_fp16_is_within_half_a_unit_in_the_last_place(codec, vector):
    again = decode(codec, encode(codec, vector), vector.size)
    assert again.dtype == np.float32
    assert np.all(np.abs(again - vector) <= np.maximum(np.abs(vector) * 2.0**-11, 2.0**-25))


@pytest.mark.parametrize(
    ("codec", "spelled"),
    [
        ("none", "0000803f000000c00000000000000080"),
        ("fp16", "003c00c000000080"),
        ("bf16", "803f00c000000080"),
    ],
)
def test_bytes_are_little_endian(codec, spelled):
    vector = np.array([1, -2, 0.0, -0.0], np.float32)
    assert bytes(encode(codec, vector)).hex() == spelled
    assert decode(codec, bytes.fromhex(spelled), 4).tobytes() == vector.tobytes()


def test_none_copies_nothing_on_the_way_out_or_in():
    vector = np.arange(5, dtype=np.float32)
    data = encode("none", vector)
    assert np.shares_memory(np.frombuffer(data, np.uint8), vector)
    assert np.shares_memory(decode("none", data, 5), vector)


@pytest.mark.parametrize(("plain", "deflated", "itemsize"), DEFLATED)
def test_zstd_holds_the_bytes_of_the_plain_codec_in_one_frame_sorted_by_significance(
    plain, deflated, itemsize
):
    vector = np.tile(np.array([1, -2, 0.5], np.float32), 1000)
    raw = bytes(encode(plain, vector, 7))
    frame = encode(deflated, vector, 7)
    assert inflate(frame, len(raw)) == b"".join(raw[start::itemsize] for start in range(itemsize))
    assert decode(deflated, frame, 3000).tobytes() == decode(plain, raw, 3000).tobytes()


def test_no_vector_takes_more_than_its_codec_allows():
    vector = np.frombuffer(np.random.default_rng(1).bytes(400_000), "<f2").astype(np.float32)
    vector[~np.isfinite(vector)] = 0
    for name, codec in CODECS.items():
        assert codec.allows(len(encode(name, vector)), vector.size)
    assert not CODECS["fp16+zstd"].allows(frame_bytes_max(2 * vector.size) + 1, vector.size)
    assert not CODECS["zstd"].allows(0, vector.size)


@pytest.mark.parametrize("codec", ["fp16", "fp16+zstd"])
@pytest.mark.parametrize("value", [65536, -65536, 65505, np.inf, -np.inf, np.nan])
def test_fp16_does_not_let_a_value_become_infinite(codec, value):
    with pytest.raises(RangeError, match="fp16"):
        encode(codec, np.array([0, value, 1], np.float32))


@pytest.mark.parametrize("codec", ["none", "fp16"])
@pytest.mark.parametrize("more", [-1, 1])
def test_a_wrong_length_is_refused(codec, more):
    data = bytes(encode(codec, np.ones(3, np.float32)))
    with pytest.raises(DecodeError, match="3 elements"):
        decode(codec, data[:more] if more < 0 else data + b"\0", 3)


@pytest.mark.parametrize("codec", ["zstd", "fp16+zstd"])
@pytest.mark.parametrize("elements", [2, 4, 2**28])
def test_a_frame_of_another_number_of_elements_is_refused(codec, elements):
    with pytest.raises(DecodeError):
        decode(codec, encode(codec, np.ones(3, np.float32)), elements)


def test_unknown_codecs_are_refused_both_ways():
    with pytest.raises(ConfigError, match="none, fp16"):
        encode("zip", np.ones(1, np.float32))
    with pytest.raises(DecodeError, match="none, fp16"):
        decode("zip", b"", 0)


@given(vectors)
def test_bf16_is_torchs(vector):
    vector = np.clip(np.nan_to_num(vector), -3e38, 3e38).astype(np.float32)
    theirs = torch.from_numpy(vector).to(torch.bfloat16).to(torch.float32).numpy()
    assert decode("bf16", encode("bf16", vector), vector.size).tobytes() == theirs.tobytes()


@pytest.mark.parametrize(
    ("codec", "value"), [("bf16", 3.4e38), ("int8", np.inf), ("int4", np.nan), ("topk-1", 7e4)]
)
def test_no_codec_lets_a_value_become_infinite(codec, value):
    with pytest.raises(RangeError, match=codec):
        encode(codec, np.array([0, value, 1], np.float32))


def test_the_codecs_that_leave_something_out_say_so():
    assert {name for name, codec in CODECS.items() if codec.forgets} == {
        "topk-1",
        "topk-1+zstd",
        "topk-10",
        "topk-10+zstd",
    }


@pytest.mark.parametrize("codec", CODECS)
def test_the_same_seed_gives_the_same_bytes_and_what_is_read_is_new_memory_or_read_only(codec):
    vector = np.random.default_rng(1).normal(size=1000).astype(np.float32)
    assert bytes(encode(codec, vector, 3)) == bytes(encode(codec, vector, 3))
    kept = vector.copy()
    again = decode(codec, bytes(encode(codec, vector, 3)), 1000)
    assert again.dtype == np.float32
    assert again.shape == (1000,)
    assert np.array_equal(vector, kept)


@pytest.mark.parametrize("codec", CODECS)
@given(data=st.binary(max_size=80), elements=st.integers(1, 20))
def test_whatever_bytes_come_in_a_vector_comes_out_or_a_decode_error(codec, data, elements):
    form = CODECS[codec]
    plain = (data * 40)[: form.spelling.size(elements)]
    for spelled in (data, deflate(plain) if form.deflated and plain else plain):
        try:
            vector = decode(codec, spelled, elements)
        except DecodeError:
            continue
        assert (vector.shape, vector.dtype) == ((elements,), np.float32)
