"""What the machine must have for a test: without it the test skips, or fails where everything is required."""

import os
import shutil
from pathlib import Path

import pytest

REQUIRE = "FEDMQ_TEST_REQUIRE"  # "1": a machine that lacks something is a failure
FILES = {"dataset-fashion-mnist": Path("/usr/share/datasets/fashion-mnist")}
PROGRAMS = {"mosquitto", "mosquitto_sub", "chromium"}
# Debian puts servers where an ordinary user's PATH does not look
PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin"])


def need(name: str) -> str:
    """Return the path of a program or of files; skip the test, or fail it, where they are missing."""
    path = _find(name)
    if path is not None:
        return path
    if os.environ.get(REQUIRE) == "1":
        pytest.fail(f"{name} is not installed, and {REQUIRE}=1 requires it")
    pytest.skip(f"{name} is not installed")


def _find(name: str) -> str | None:
    if name in FILES:
        return str(FILES[name]) if FILES[name].exists() else None
    assert name in PROGRAMS, name
    return shutil.which(name, path=PATH)
