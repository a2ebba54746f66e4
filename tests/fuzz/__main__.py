"""Give arbitrary bytes to what reads them, guided by what they reach (atheris), until something else comes out.

    make fuzz                            every target for a minute
    make fuzz ARGS="envelopes 600"       one of them, for ten

What was found to reach more is kept below `.fuzz/<target>` and is where the next call goes on. Bytes that ended in
something that is not allowed are written to `.fuzz/<target>-crash-…`: play them as a test of their own.
"""

import argparse
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".fuzz"
DEFAULT_S = 60
LIMITS = ("-max_len=4096", "-rss_limit_mb=2048", "-timeout=10")

_INSIDE = "--inside"


def main() -> int:
    """Play one target, or one after the other."""
    if find_spec("atheris") is None:
        print(
            "atheris is not here: `pip install atheris` (it is there for Linux, not yet for every new Python)"
        )
        return 1
    if sys.argv[1:2] == [_INSIDE]:
        _fuzz(sys.argv[2], int(sys.argv[3]))
    from fuzz.targets import TARGETS

    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("target", nargs="?", choices=TARGETS)
    options.add_argument("seconds", nargs="?", type=int, default=DEFAULT_S)
    chosen = options.parse_args()
    return max([_played(name, chosen.seconds) for name in ([chosen.target] if chosen.target else TARGETS)])


def _played(name: str, seconds: int) -> int:
    """Play a target in a process of its own, for atheris ends the one that it is in; say what came of it."""
    command = [sys.executable, "-m", "fuzz", _INSIDE, name, str(seconds)]
    ended = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    found = re.findall(r"^#(\d+)\s+DONE\s+cov: (\d+)", ended.stderr, re.MULTILINE)
    if ended.returncode or not found:
        print(f"{name}: failed\n{ended.stderr[-4000:]}", flush=True)
        return 1
    count, reached = map(int, found[-1])
    print(
        f"{name}: {count} executions, {count // seconds} a second, {reached} edges, nothing found", flush=True
    )
    return 0


def _fuzz(name: str, seconds: int) -> NoReturn:
    """Let atheris play a target; it ends the process."""
    import atheris

    with atheris.instrument_imports(include=["common", "broker"]):
        from fuzz.targets import TARGETS
    corpus = FOLDER / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(TARGETS[name].seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    options = [f"-max_total_time={seconds}", f"-artifact_prefix={corpus}-", *LIMITS]
    atheris.Setup([sys.argv[0], *options, str(corpus)], TARGETS[name].play)
    atheris.Fuzz()
    raise AssertionError("atheris has come back")


if __name__ == "__main__":
    sys.exit(main())
