"""Base45: the examples of RFC 9285, and one spelling for each."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import base45
from common.errors import DecodeError


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"AB", "BB8"),
        (b"Hello!!", "%69 VD92EX0"),
        (b"base-45", "UJCLQE7W581"),
        (b"ietf!", "QED8WEX0"),
        (b"", ""),
        (b"\xff\xff", "FGW"),
        (b"\xff", "U5"),
    ],
)
def test_the_examples_of_the_rfc(data, text):
    assert base45.encode(data) == text
    assert base45.decode(text) == data


@pytest.mark.parametrize("text", ["GGW", ":::", "V5", "::", "A", "BB8A", "bb8", "BÄ8", "BB8\n00", "B_8"])
def test_what_no_bytes_are_spelled_as_is_refused(text):
    with pytest.raises(DecodeError, match=r"base45|stands for no"):
        base45.decode(text)


@given(st.binary(max_size=200))
def test_bytes_come_back_and_never_end_in_a_space(data):
    text = base45.encode(data)
    assert base45.decode(text) == data
    assert set(text) <= set(base45.ALPHABET)
    assert not text.endswith(" ")


@given(st.text(base45.ALPHABET, max_size=12) | st.text(max_size=12))
def test_a_text_is_the_one_spelling_of_its_bytes_or_refused(text):
    try:
        data = base45.decode(text)
    except DecodeError:
        return
    assert base45.encode(data) == text
