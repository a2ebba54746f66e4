"""Whatever comes in is answered as the target's table says: arbitrary bytes, and good ones that were spoilt."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz.targets import TARGETS
from support import hostile


@st.composite
def spoilt(draw, seeds):
    """Take good bytes and cut, flip, repeat or replace a few of them, or join two."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 3))):
        at, to = sorted((draw(st.integers(0, len(data))), draw(st.integers(0, len(data)))))
        data = draw(
            st.one_of(
                st.just(data[:at]),
                st.just(data[:at] + data[to:]),
                st.just(data[:to] + data[at:]),
                st.binary(max_size=9).map(
                    lambda other, data=data, at=at: data[:at] + other + data[at + len(other) :]
                ),
                st.sampled_from(seeds).map(lambda other, data=data, at=at, to=to: data[:at] + other[to:]),
                st.sampled_from(ODD).map(
                    lambda other, data=data, at=at, to=to: data[:at] + other + data[to:]
                ),
            )
        )
    return data


ODD = (
    *(one for one in hostile.BOMBS.values() if len(one) < 1000),
    *(byte * count for byte in (b"\xff", b"\0") for count in (1, 2, 4, 8)),
    *(b'"\\ud800"', b"1e999", b"[" * 500),
)


@pytest.mark.parametrize("name", TARGETS)
@given(st.data())
@settings(max_examples=200)
def test_bytes_that_were_good_once_end_in_what_is_allowed(name, data):
    TARGETS[name].play(data.draw(spoilt(TARGETS[name].seeds)))


@pytest.mark.parametrize("name", TARGETS)
@given(st.binary(max_size=300))
@settings(max_examples=200)
def test_any_bytes_end_in_what_is_allowed(name, data):
    TARGETS[name].play(data)


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("bomb", [name for name, data in hostile.BOMBS.items() if len(data) < 10_000])
def test_a_bomb_ends_in_what_is_allowed(name, bomb):
    TARGETS[name].play(hostile.BOMBS[bomb])


@pytest.mark.parametrize("name", TARGETS)
def test_the_seeds_are_good_ones(name):
    """Or else nothing behind the first check is ever reached."""
    for seed in TARGETS[name].seeds:
        TARGETS[name].run(seed)
