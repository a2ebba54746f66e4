import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.compression import CODECS, decode, encode
from common.inflate import deflate
from common.messages import Reason
from common.tensors import norm
from coordinator.screening import screen

GOOD = np.array([3, -4, 0, -0.0], np.float32)


def blob(*values: float) -> bytes:
    return np.array(values, "<f4").tobytes()


def sorted_bytes(data: bytes, itemsize: int) -> bytes:
    """All first bytes, then all second ones: as floats are deflated."""
    return b"".join(data[start::itemsize] for start in range(itemsize))


@pytest.mark.parametrize("codec", CODECS)
def test_a_good_update_is_its_delta(codec):
    delta = screen(bytes(encode(codec, GOOD)), codec=codec, elements=4, norm_max=8)
    assert delta.dtype == np.float32
    assert delta.tobytes() == decode(codec, bytes(encode(codec, GOOD)), 4).tobytes()
    if codec.removesuffix("+zstd") in {"none", "fp16", "bf16", "zstd"}:
        assert delta.tobytes() == GOOD.tobytes()


@pytest.mark.parametrize(
    ("data", "codec", "reason"),
    [
        (GOOD.tobytes(), "zip", Reason.MALFORMED),
        (b"", "none", Reason.WRONG_SIZE),
        (GOOD.tobytes()[:-1], "none", Reason.WRONG_SIZE),
        (GOOD.tobytes() + b"\0", "none", Reason.WRONG_SIZE),
        (GOOD.tobytes(), "fp16", Reason.WRONG_SIZE),
        (bytes(1000), "zstd", Reason.WRONG_SIZE),  # longer than a frame of 16 bytes can be
        (GOOD.tobytes(), "zstd", Reason.MALFORMED),
        (deflate(bytes(15)), "zstd", Reason.MALFORMED),
        (deflate(bytes(16)), "fp16+zstd", Reason.MALFORMED),
        (deflate(sorted_bytes(blob(1, np.nan, 1, 1), 4)), "zstd", Reason.NOT_FINITE),
        (deflate(sorted_bytes(bytes.fromhex("007c00000000007e"), 2)), "fp16+zstd", Reason.NOT_FINITE),
        (deflate(sorted_bytes(blob(3e38, 3e38, -3e38, 3e38), 4)), "zstd", Reason.TOO_LARGE),
        (blob(1, np.nan, 1, 1), "none", Reason.NOT_FINITE),
        (blob(1, 1, 1, np.inf), "none", Reason.NOT_FINITE),
        (blob(-np.inf, np.inf, 1, 1), "none", Reason.NOT_FINITE),
        (bytes.fromhex("007c00000000007e"), "fp16", Reason.NOT_FINITE),
        (bytes.fromhex("010080ff" + "00" * 12), "none", Reason.NOT_FINITE),  # a signalling NaN
        (blob(3e38, 3e38, -3e38, 3e38), "none", Reason.TOO_LARGE),  # its square is beyond float32
        (blob(5.01, 0, 0, 0), "none", Reason.TOO_LARGE),
    ],
)
def test_a_bad_one_has_its_reason(data, codec, reason):
    assert screen(data, codec=codec, elements=4, norm_max=5) is reason


@given(st.binary(max_size=40), st.sampled_from([*CODECS, "zip", ""]), st.integers(0, 12))
def test_nothing_that_comes_makes_it_raise(data, codec, elements):
    found = screen(data, codec=codec, elements=elements, norm_max=10)
    assert isinstance(found, Reason) or (found.shape == (elements,) and np.linalg.norm(found) <= 10.001)


def test_a_bad_value_is_found_wherever_it_is():
    vector = np.zeros(2**19 + 3, np.float32)
    for place in (0, 2**18 - 1, 2**18, -1):
        vector[place] = np.nan
        assert screen(vector.tobytes(), codec="none", elements=vector.size) is Reason.NOT_FINITE
        vector[place] = 0
    vector[[0, -1]] = 3, -4
    assert norm(vector) == 5
