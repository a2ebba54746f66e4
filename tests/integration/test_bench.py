"""The benchmark runs, whatever the numbers are."""

import subprocess
import sys

from support.patience import within
from support.running import ROOT


def test_the_round_without_training_ends_in_a_table():
    done = subprocess.run(
        [sys.executable, "tests/bench/round_overhead.py", "--clients", "2", "--rounds", "3"],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=within(90),
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    row = next(line for line in done.stdout.splitlines() if "amqtt" in line).split("│")
    assert [cell.strip() for cell in row[1:5]] == ["amqtt", "2", "none", "3"]
    assert all(float(cell) > 0 for cell in row[5:9])


def test_what_durability_costs_is_four_lines():
    done = subprocess.run(
        [sys.executable, "tests/bench/durability.py", "--clients", "20"],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=within(90),
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    numbers = [float(line.rpartition(": ")[2].split()[0]) for line in done.stdout.splitlines()]
    assert len(numbers) == 4
    assert all(number > 0 for number in numbers)
