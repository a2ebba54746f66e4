"""`fedmq audit verify`: finds the run and the root, and shows what an audit found."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from common import identity, log, parts
from common.certificates import Role, Root
from common.errors import NotFoundError
from common.ids import COORDINATOR
from common.settings import Settings
from coordinator.audit import Report


def locate(settings: Settings, run: str) -> Path:
    """Find a run's folder: given by its path, or by its id below the coordinator's state. Raises: NotFoundError."""
    if Path(run).is_dir():
        return Path(run)
    runs = parts.state_dir(settings, Role.COORDINATOR, COORDINATOR) / "runs"
    if not (runs / run).is_dir():
        raise NotFoundError(f"there is no run {run!r} in {runs}, and no folder of that name here")
    return runs / run


def root(settings: Settings, file: Path | None) -> Root:
    """Read the root's certificate, from the file or from among the keys. Raises: ConfigError."""
    return identity.read_root_file(file) if file else identity.read_root(parts.keys_dir(settings))


def events(report: Report) -> Iterator[dict[str, object]]:
    """Say it for programs."""
    for finding in report.findings:
        yield {"event": "audit.finding", **asdict(finding)}
    for note in report.notes:
        yield {"event": "audit.note", "what": note}
    facts = asdict(report)
    del facts["findings"], facts["notes"]
    yield {"event": "audit.finished", **facts, "ok": report.ok}


def lines(report: Report) -> Iterator[str]:
    """Say it for people; what the folder holds can neither end a line nor steer a terminal."""
    yield from map(log.escape, _lines(report))


def _lines(report: Report) -> Iterator[str]:
    yield f"run            {report.run}{'' if report.over else ', not over'}"
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
