"""kill -9 of anybody, at any moment, any number of times: every update counts once, or its refusal is recorded."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.patience import within
from support.require import need

ROOT = Path(__file__).parents[2]


def soak(*arguments, seconds):
    """Run a soak; give its exit code, its last event, and all that it said."""
    done = subprocess.run(
        [sys.executable, "tests/faults/soak.py", "--json", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=within(seconds),
        cwd=ROOT,
        check=False,
    )
    lines = done.stdout.splitlines()
    return done.returncode, json.loads(lines[-1]) if lines else {}, done.stdout + done.stderr


def test_a_short_soak_ends_well_and_leaves_nothing_but_its_numbers(tmp_path):
    code, ended, said = soak("--minutes", 0.15, "--kills", 2, "--clients", 2, "--seed", 5, seconds=100)
    assert code == 0, said
    assert sum(ended["kills"].values()) == 2
    assert ended["finished"] == ended["once"] + sum(ended["refused"].values()) > 0
    assert (ended["lost"], ended["twice"], ended["waiting"]) == (0, 0, 0)
    assert "kept" not in said
    assert ended["again"].endswith(
        "--minutes 0.15 --kills 2 --clients 2 --seed 5 --engine amqtt --late buffer"
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("engine", "late"), [("amqtt", "buffer"), ("mosquitto", "refuse")])
def test_what_is_killed_twenty_times_in_two_minutes_loses_nothing(engine, late, tmp_path):
    if engine == "mosquitto":
        need("mosquitto")
    flags = ("--minutes", 2, "--kills", 24, "--engine", engine, "--late", late)
    code, ended, said = soak(*flags, "--keep", tmp_path / "soak", seconds=800)
    assert code == 0, said
    assert sum(ended["kills"].values()) >= 20
    assert ended["problems"] == []
