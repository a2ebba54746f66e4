"""The README's own data set, model and strategy work: found in the current directory, by every process."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.patience import within

EXAMPLES = Path(__file__).with_name("examples")
OURS = {
    "--dataset": "my_data:load",
    "--model": "my_model:build",
    "--strategy": "my_strategy:momentum(beta=0.5)",
}
OPTIONS = ["--data-option", "held_out=20", "--model-option", "width=48"]


@pytest.mark.timeout(within(120))
def test_a_federation_of_ones_own(tmp_path):
    demo = [
        Path(sys.executable).with_name("fedmq"),
        "demo",
        "--json",
        "--num-clients",
        "2",
        "--num-rounds",
        "2",
    ]
    ours = [word for pair in OURS.items() for word in pair]
    done = subprocess.run(
        [*demo, *ours, *OPTIONS, "--state-dir", tmp_path],
        cwd=EXAMPLES,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=within(100),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["clients"] for event in events if event["event"] == "round.finished"] == [2, 2]
    assert events[-1]["event"] == "run.finished"
    assert events[-1]["completed"]
    assert math.isfinite(events[-1]["loss"])
