"""Real time-outs: one environment variable scales them all, for machines that are slow or busy."""

import os

PATIENCE = float(os.environ.get("FEDMQ_TEST_PATIENCE", "1"))


def within(seconds: float) -> float:
    """Scale a time-out that a test would have on an idle machine."""
    return seconds * PATIENCE
