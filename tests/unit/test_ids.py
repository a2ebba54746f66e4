"""Names and digests: what is let through, and what is reserved."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import ids
from common.errors import ConfigError


@given(st.from_regex(ids.NAME, fullmatch=True))
def test_every_name_is_a_whole_topic_level_and_a_file_name(name):
    assert ids.is_name(name)
    assert not set("/+#$. \0") & set(name)
    assert 1 <= len(name.encode()) <= 63


@given(st.text())
def test_anything_else_is_no_name(text):
    assert ids.is_name(text) == bool(re.match(r"[a-z0-9][a-z0-9-]{0,62}\Z", text))


@pytest.mark.parametrize(
    "text", ["", "-a", "A", "a_b", "a/b", "a b", "ä", "a\n", "+", "#", "a" * 64, "..", "client-\u0661"]
)
def test_what_is_no_name_is_refused_by_that_name(text):
    for check in (ids.client_id, ids.federation_id):
        with pytest.raises(ConfigError, match=re.escape(repr(text))):
            check(text)


@pytest.mark.parametrize(
    "text", ["coordinator", "operator", "dashboard", "dashboard-1", "bridge-a", "observer", "observer-2"]
)
def test_names_that_other_access_rules_belong_to_are_no_clients(text):
    assert ids.is_name(text)
    with pytest.raises(ConfigError, match="reserved"):
        ids.client_id(text)


@pytest.mark.parametrize("text", ["a", "0", "client-1", "bridge", "coordinators", "a" * 63])
def test_other_names_are_free(text):
    assert ids.client_id(text) == text


def test_no_federation_is_called_mesh():
    with pytest.raises(ConfigError, match="reserved"):
        ids.federation_id("mesh")
    assert ids.federation_id("mesh-2") == "mesh-2"


def test_a_digest_is_sha_256_in_lower_case_hex():
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1
    assert ids.sha256(b"abc") == ids.sha256(memoryview(b"abc")) == abc
    assert re.fullmatch(ids.DIGEST, abc)
