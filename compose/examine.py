"""`fedmq audit verify`: finds the run and the root, and shows what an audit found."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from common import identity, log, parts
from common.certificates import Role, Root
from common.errors import ConfigError, NotFoundError
from common.ids import COORDINATOR
from common.settings import Settings
from coordinator.audit import Report
from coordinator.history import FILE

ROOT = "root.pem"
RUNS = ("runs", f"{COORDINATOR}/runs")  # below the coordinator's own state, and below a demo's
RUNS_LISTED = 5


def locate(settings: Settings, run: str) -> Path:
    """Find a run's folder: by its path, or by its id in the state of a coordinator or a demo.

    Raises: NotFoundError.
    """
    named = Path(run)
    if named.name == FILE and named.is_file():
        return named.parent
    if named.is_dir():
        if (named / FILE).is_file():
            return named
        raise NotFoundError(f"{run} is no run's folder: it holds no {FILE}", advice=_advice([named]))
    states = _states(settings)
    for folder in (state / runs / run for state in states for runs in RUNS):
        if folder.is_dir():
            return folder
    raise NotFoundError(
        f"there is no run {run!r} in {states[0]}, and no folder of that name here", advice=_advice(states)
    )


def _states(settings: Settings) -> list[Path]:
    """List where our own runs may be: where we were told, or in the usual place and in those of demos."""
    state = parts.state_dir(settings, Role.COORDINATOR, COORDINATOR)
    return [state] if settings.state_dir else [state, *state.parent.glob("demo-*")]


def _advice(states: list[Path]) -> str:
    """List the last runs that there are, or say where they would be."""
    found = [file.parent for state in states for runs in RUNS for file in state.glob(f"{runs}/*/{FILE}")]
    if found:
        last = sorted(found, key=lambda folder: folder.name)[-RUNS_LISTED:]
        return f"Name the run. These are there: {', '.join(map(str, last))}"
    return "Name a run's folder, or its id: --state-dir says where the coordinator, or the demo, keeps its state."


def root_file(settings: Settings, given: Path | None, folder: Path) -> Path:
    """Say which root is trusted: the one that was named, that of our own demo, or that of the keys here.

    Where none of these is there, that of the demo that the folder lies in, whosesoever it is.
    """
    if given is not None:
        return given
    ours = parts.keys_dir(settings) / ROOT
    demo = _demo_of(folder)
    if settings.keys_dir is not None or demo is None or not (demo / "keys" / ROOT).is_file():
        return ours
    is_our_own = demo in [state.resolve() for state in _states(settings)]
    return demo / "keys" / ROOT if is_our_own or not ours.exists() else ours


def _demo_of(folder: Path) -> Path | None:
    """Find the demo that a run's folder is part of."""
    path = folder.resolve()
    return path.parents[2] if path.match(f"{COORDINATOR}/runs/*") else None


def read_root(file: Path) -> Root:
    """Read the root's certificate. Raises: ConfigError."""
    try:
        return identity.read_root_file(file)
    except ConfigError as error:
        raise ConfigError(str(error), advice="Say with --root where the federation's root.pem is.") from error


def events(report: Report, root: Path) -> Iterator[dict[str, object]]:
    """Say it for programs."""
    for finding in report.findings:
        yield {"event": "audit.finding", **asdict(finding)}
    for note in report.notes:
        yield {"event": "audit.note", "what": note}
    facts = asdict(report)
    del facts["findings"], facts["notes"]
    yield {"event": "audit.finished", **facts, "root": str(root), "ok": report.ok}


def lines(report: Report, root: Path) -> Iterator[str]:
    """Say it for people; what the folder holds can neither end a line nor steer a terminal."""
    yield from map(log.escape, _lines(report, root))


def _lines(report: Report, root: Path) -> Iterator[str]:
    yield f"run            {report.run}{'' if report.over else ', not over'}"
    yield f"root           {root}"
    yield f"lines          {report.lines}"
    yield f"rounds         {report.rounds} committed"
    yield f"updates        {report.updates} merged"
    yield f"re-aggregated  {'yes, to the same models' if report.reaggregated else 'no'}"
    yield f"findings       {len(report.findings) or 'none'}"
    for finding in report.findings:
        where = finding.file if finding.line is None else f"{finding.file}:{finding.line}"
        yield f"  {where}: {finding.what}"
    for note in report.notes:
        yield f"note: {note}"
