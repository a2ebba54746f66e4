"""Files that are there whole or not at all, and directories that one process holds."""

import pytest

from common import files
from common.errors import AlreadyRunningError, ConfigError


def test_a_directory_is_held_once_at_a_time_and_stays_its_owners(tmp_path):
    directory = tmp_path / "deep" / "state"
    with (
        files.held(directory, "client-1 of lab"),
        pytest.raises(AlreadyRunningError, match="in use by the process"),
        files.held(directory, "client-1 of lab"),
    ):
        pass
    with files.held(directory, "client-1 of lab"):
        pass
    with (
        pytest.raises(ConfigError, match="the state of client-1 of lab: give client-2 of lab"),
        files.held(directory, "client-2 of lab"),
    ):
        pass


def test_a_file_is_replaced_whole_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "file"
    files.replace(path, b"old")
    files.replace(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]
