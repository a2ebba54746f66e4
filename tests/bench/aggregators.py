"""What aggregators cost, as ratios to reading all deltas once: numpy's mean of the matrix.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 .venv/bin/python tests/bench/aggregators.py [--clients 50]

The best of some repetitions, in one process and one thread; the mean before and after each rule.
"""

import argparse
import time

import numpy as np
from rich.console import Console
from rich.table import Table

from coordinator.aggregators import resolve

TARGETS = {
    "mean": 1.3,
    "median": 10,
    "trimmed_mean(f=5)": 10,
    "krum(f=5)": 15,
    "multi_krum(f=5)": 15,
    "geometric_median": 15,
    "nnm(f=5, then='mean')": 15,
    "nnm(f=5, then='trimmed_mean(f=5)')": None,
    "bulyan(f=5)": None,
    "centered_clipping": None,
    "norm_clip": None,
    "bucketing(s=2, then='median')": None,
}


def best(work, repeat):
    found = []
    for _ in range(repeat):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return min(found)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--clients", type=int, default=50)
    options.add_argument("--elements", type=int, default=1_000_000)
    options.add_argument("--repeat", type=int, default=5)
    given = options.parse_args()
    deltas = np.random.default_rng(0).standard_normal((given.clients, given.elements)).astype(np.float32)
    table = Table(title=f"{given.clients} deltas of {given.elements:,} elements, one thread")
    for head in ("aggregator", "ms", "ratio", "target"):
        table.add_column(head, justify="left" if head == "aggregator" else "right")
    for text, target in TARGETS.items():
        rule = resolve(text)
        before = best(lambda: deltas.mean(0), given.repeat)
        took = best(lambda rule=rule: rule(deltas), given.repeat)
        read = min(before, best(lambda: deltas.mean(0), given.repeat))
        table.add_row(text, f"{1000 * took:.0f}", f"{took / read:.1f}", str(target or ""))
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
