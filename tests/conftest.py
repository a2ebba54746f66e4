"""What holds for every test: its folder is its marker, and it starts from an empty home."""

import itertools
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

TESTS = Path(__file__).parent
FOLDERS = sorted(path.name for path in TESTS.iterdir() if any(path.glob("test_*.py")))
BASE_DIRECTORIES = {
    "HOME": "",
    "XDG_STATE_HOME": "state",
    "XDG_CONFIG_HOME": "config",
    "XDG_CACHE_HOME": "cache",
    "XDG_DATA_HOME": "data",
}

# `make test` tries the same examples each time; `make explore` tries new ones, and many. A machine that is busy with
# something else must not fail a property.
usual = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("fedmq", usual, derandomize=True, database=None)
settings.register_profile("explore", usual, max_examples=3000)
settings.load_profile("fedmq")

_numbers = itertools.count()


def pytest_configure(config):
    for folder in FOLDERS:
        config.addinivalue_line("markers", f"{folder}: everything in tests/{folder}")


def pytest_collection_modifyitems(items):
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0]
        if folder in FOLDERS:
            item.add_marker(folder)


@pytest.fixture(autouse=True)
def empty_home(tmp_path_factory, monkeypatch):
    """Give each test a home of its own, and no settings from outside; child processes inherit both."""
    directory = tmp_path_factory.getbasetemp() / f"home-{next(_numbers)}"
    directory.mkdir()
    for variable, below in BASE_DIRECTORIES.items():
        monkeypatch.setenv(variable, str(directory / below))
    for variable in [name for name in os.environ if name.upper().startswith("FEDMQ_")]:
        if not variable.startswith("FEDMQ_TEST_"):
            monkeypatch.delenv(variable)
    return directory
