"""`fedmq audit verify`, as somebody runs it who was handed a folder and a certificate."""

import json

import pytest

from support import runs
from support.running import finish


@pytest.fixture
def told(tmp_path):
    return runs.whole(tmp_path)


def root(told):
    return ("--root", told.keys_dir / "root.pem")


def test_a_genuine_run_is_found_by_path_and_by_id(told, tmp_path):
    code, shown, said = finish("audit", "verify", told.folder.path, *root(told))
    assert (code, said) == (0, "")
    assert "re-aggregated  yes" in shown
    assert "findings       none" in shown
    assert f"root           {told.keys_dir / 'root.pem'}" in shown
    by_id = ("audit", "verify", runs.RUN, "--state-dir", tmp_path, "--keys-dir", told.keys_dir, "--json")
    code, shown, said = finish(*by_id)
    assert (code, said) == (0, "")
    assert json.loads(shown) == {
        "event": "audit.finished",
        "run": runs.RUN,
        "lines": 7,
        "rounds": 3,
        "updates": 8,
        "over": True,
        "reaggregated": True,
        "root": str(told.keys_dir / "root.pem"),
        "ok": True,
    }


def test_a_run_that_was_changed_ends_in_65_and_says_where(told):
    with (told.folder.path / "metrics.jsonl").open("a") as file:
        file.write("{}\n")
    (told.folder.checkpoints / "round-\n.safetensors").touch()
    code, shown, _ = finish("audit", "verify", told.folder.path, *root(told))
    assert code == 65
    assert "  metrics.jsonl:6: no line of the transcript vouches for it" in shown.splitlines()
    assert "round-\\u000a.safetensors" in shown  # what is in the folder ends no line
    code, shown, _ = finish("audit", "verify", told.folder.path, *root(told), "--json")
    assert code == 65
    *findings, last = map(json.loads, shown.splitlines())
    assert {(finding["event"], finding["file"], finding["line"]) for finding in findings} == {
        ("audit.finding", "metrics.jsonl", 6),
        ("audit.finding", "checkpoints/round-\n.safetensors", None),
    }
    assert not last["ok"]


def test_what_is_not_there_is_said(told, tmp_path):
    code, _, said = finish("audit", "verify", "20261124-000000-0000", "--state-dir", tmp_path)
    assert code == 3
    assert "there is no run '20261124-000000-0000'" in said
    assert f"These are there: {told.folder.path}" in said
    code, _, said = finish("audit", "verify", told.folder.path, "--root", tmp_path / "root.pem")
    assert code == 78
    assert "Say with --root where" in said


def test_a_strategy_that_does_not_exist_is_a_wrong_command_line(told):
    code, _, said = finish("audit", "verify", told.folder.path, *root(told), "--strategy", "nonsense")
    assert code == 2
    assert "no 'nonsense' among the strategies" in said
