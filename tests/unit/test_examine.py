"""Which run is meant, and which root is trusted: by hand, in a demo, and in a folder that was handed over."""

import pytest

from common.errors import ConfigError, NotFoundError
from common.settings import Settings, default_keys, default_state
from compose import examine
from coordinator.history import FILE

RUN = "20261124-065907-d1ad"


def run_in(state, name=RUN):
    folder = state / "runs" / name
    folder.mkdir(parents=True)
    (folder / FILE).touch()
    return folder


def root_in(directory):
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "root.pem").touch()
    return directory / "root.pem"


@pytest.fixture
def demo(tmp_path):
    """The folder of a demo with one run."""
    run_in(tmp_path / "demo" / "coordinator")
    root_in(tmp_path / "demo" / "keys")
    return tmp_path / "demo"


def told(folder, root=None, **settings):
    return examine.root_file(Settings(**settings), root, folder)


# --- the run --------------------------------------------------------------------------------------


def test_a_run_is_found_by_its_id_in_the_state_of_a_coordinator_or_a_demo(tmp_path, demo):
    by_hand = run_in(tmp_path / "state")
    assert examine.locate(Settings(state_dir=tmp_path / "state"), RUN) == by_hand
    assert examine.locate(Settings(state_dir=demo), RUN) == demo / "coordinator" / "runs" / RUN


def test_without_a_state_directory_the_usual_places_are_looked_at():
    demo = default_state("demo", "demo", "20261124-065900")
    by_hand = run_in(default_state("demo", "coordinator", "coordinator"), "by-hand")
    in_demo = run_in(demo / "coordinator", "in-demo")
    root, ours = root_in(demo / "keys"), root_in(default_keys("demo"))
    assert examine.locate(Settings(), "by-hand") == by_hand
    assert examine.locate(Settings(), "in-demo") == in_demo
    assert (told(by_hand), told(in_demo)) == (ours, root)


def test_a_run_is_found_by_its_folder_and_by_its_transcript(demo):
    folder = demo / "coordinator" / "runs" / RUN
    assert examine.locate(Settings(), str(folder)) == folder
    assert examine.locate(Settings(), str(folder / FILE)) == folder


@pytest.mark.parametrize("below", ["", "coordinator"])
def test_a_folder_that_is_no_run_is_told_the_runs_in_it(demo, below):
    with pytest.raises(NotFoundError, match=f"is no run's folder: it holds no {FILE}") as raised:
        examine.locate(Settings(), str(demo / below))
    assert raised.value.advice.endswith(str(demo / "coordinator" / "runs" / RUN))


def test_a_run_that_is_nowhere_is_told_the_last_ones(tmp_path):
    with pytest.raises(NotFoundError) as raised:
        examine.locate(Settings(state_dir=tmp_path), "nowhere")
    assert "--state-dir" in raised.value.advice
    folders = [run_in(tmp_path, f"run-{number}") for number in range(7)]
    with pytest.raises(NotFoundError) as raised:
        examine.locate(Settings(state_dir=tmp_path), "nowhere")
    assert raised.value.advice.endswith(": " + ", ".join(map(str, folders[-5:])))


# --- the root -------------------------------------------------------------------------------------


def test_a_demo_that_is_named_brings_its_root(demo):
    folder, ours = demo / "coordinator" / "runs" / RUN, root_in(default_keys("demo"))
    assert told(folder, state_dir=demo) == demo / "keys" / "root.pem"
    assert told(folder) == ours  # a folder that was handed over does not say who is to be trusted


def test_a_path_in_a_demo_brings_its_root_where_there_is_no_other(demo, monkeypatch):
    folder = demo / "coordinator" / "runs" / RUN
    assert told(folder) == demo / "keys" / "root.pem"
    monkeypatch.chdir(folder)
    assert told(examine.locate(Settings(), ".")) == demo / "keys" / "root.pem"


def test_what_is_said_wins(tmp_path, demo):
    folder = demo / "coordinator" / "runs" / RUN
    named = tmp_path / "named.pem"
    assert told(folder, named, state_dir=demo) == named
    assert told(folder, state_dir=demo, keys_dir=tmp_path) == tmp_path / "root.pem"


def test_a_root_that_is_nowhere_is_asked_for(tmp_path):
    assert told(run_in(tmp_path)) == default_keys("demo") / "root.pem"
    with pytest.raises(ConfigError, match="cannot read") as raised:
        examine.read_root(tmp_path / "root.pem")
    assert "--root" in raised.value.advice
