"""The one command line. Every verb parses, calls one function, prints.

What is slow to import (torch, pydantic, paho, amqtt) is imported inside the verbs: `--help` answers at once.
"""

import asyncio
import contextlib
import functools
import json
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer

from common.errors import ConfigError, FedmqError, UsageError, WireError, cause_of
from compose.options import (
    Alpha,
    BatchSize,
    Brokers,
    BufferSize,
    ClientName,
    Codec,
    CohortSize,
    Config,
    DataDir,
    DataOption,
    Dataset,
    Device,
    Engine,
    Federation,
    Host,
    Json,
    KeepUpdates,
    KeysDir,
    Late,
    LocalEpochs,
    LogFile,
    LogLevel,
    Lr,
    MaxExamples,
    Mode,
    ModelName,
    ModelOption,
    Momentum,
    NumClients,
    NumRounds,
    Optimizer,
    Partition,
    Patience,
    Port,
    QuorumShare,
    Resume,
    Seed,
    StateDir,
    Strategy,
    Threads,
    WaitFor,
    WsPort,
)

if TYPE_CHECKING:
    from common.messages import Start, Stop
    from common.settings import Settings

T = TypeVar("T")

app = typer.Typer(
    name="fedmq",
    help="Federated learning over MQTT.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_show_locals=False,
    add_completion=False,
)
keys_app = typer.Typer(help="Keys and certificates of the federation.", no_args_is_help=True)
config_app = typer.Typer(help="The configuration.", no_args_is_help=True)
audit_app = typer.Typer(help="What a run's folder proves.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")
app.add_typer(config_app, name="config")
app.add_typer(audit_app, name="audit")


@app.command()
def demo(
    dataset: Dataset = None,
    model: ModelName = None,
    num_clients: NumClients = None,
    num_rounds: NumRounds = None,
    local_epochs: LocalEpochs = None,
    batch_size: BatchSize = None,
    lr: Lr = None,
    optimizer: Optimizer = None,
    momentum: Momentum = None,
    partition: Partition = None,
    alpha: Alpha = None,
    max_examples: MaxExamples = None,
    mode: Mode = None,
    late: Late = None,
    buffer_size: BufferSize = None,
    strategy: Strategy = None,
    codec: Codec = None,
    cohort_size: CohortSize = None,
    quorum_share: QuorumShare = None,
    patience: Patience = None,
    keep_updates: KeepUpdates = None,
    resume: Resume = False,
    seed: Seed = None,
    data_dir: DataDir = None,
    data_option: DataOption = None,
    model_option: ModelOption = None,
    device: Device = None,
    threads: Threads = None,
    engine: Engine = None,
    host: Host = None,
    port: Port = None,
    state_dir: StateDir = None,
    federation: Federation = None,
    log_level: LogLevel = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Run a whole federation on this machine: broker, coordinator, clients, and one table."""
    settings = _load(
        config,
        **_training_flags(locals()),
        broker__engine=engine,
        broker__host=host,
        broker__port=0 if port is None else port,
        state_dir=state_dir,
        federation=federation,
        log__level=log_level,
    )
    from compose import demo as whole
    from compose import screen

    try:
        code = whole.run(settings, screen.choose(as_json=as_json), threads=threads, resume=resume)
    except FedmqError as error:
        _fail(error)
    raise typer.Exit(code)


@app.command()
def broker(
    host: Host = None,
    port: Port = None,
    ws_port: WsPort = None,
    engine: Engine = None,
    state_dir: StateDir = None,
    federation: Federation = None,
    log_level: LogLevel = None,
    log_file: LogFile = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Run a broker until it is interrupted."""
    settings = _load(
        config,
        broker__host=host,
        broker__port=port,
        broker__ws_port=ws_port,
        broker__engine=engine,
        state_dir=state_dir,
        federation=federation,
        log__level=log_level,
        log__file=log_file,
    )
    from broker.engine import BrokerPolicy, serve
    from common.settings import default_state

    chosen = settings.broker
    directory = settings.state_dir or default_state(settings.federation, "broker", chosen.engine)
    report = _reporter(as_json=as_json)
    _run(
        serve(
            BrokerPolicy(chosen.engine, chosen.host, chosen.port, chosen.ws_port, directory),
            lambda at, number: report({"event": "broker.listening", "host": at, "port": number}),
        )
    )


@app.command()
def coordinator(
    dataset: Dataset = None,
    model: ModelName = None,
    num_clients: NumClients = None,
    num_rounds: NumRounds = None,
    local_epochs: LocalEpochs = None,
    batch_size: BatchSize = None,
    lr: Lr = None,
    optimizer: Optimizer = None,
    momentum: Momentum = None,
    partition: Partition = None,
    alpha: Alpha = None,
    mode: Mode = None,
    late: Late = None,
    buffer_size: BufferSize = None,
    strategy: Strategy = None,
    codec: Codec = None,
    cohort_size: CohortSize = None,
    quorum_share: QuorumShare = None,
    patience: Patience = None,
    keep_updates: KeepUpdates = None,
    resume: Resume = False,
    wait_for_clients: WaitFor = None,
    seed: Seed = None,
    data_dir: DataDir = None,
    data_option: DataOption = None,
    model_option: ModelOption = None,
    device: Device = None,
    hold: Annotated[
        bool, typer.Option("--hold", help="Wait for `fedmq start`, and stay after a run.")
    ] = False,
    brokers: Brokers = None,
    state_dir: StateDir = None,
    keys_dir: KeysDir = None,
    federation: Federation = None,
    log_level: LogLevel = None,
    log_file: LogFile = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Run the coordinator: open rounds, merge updates, keep the run."""
    settings = _load(
        config,
        **_training_flags(locals()),
        **_part_flags(locals()),
        run__wait_for_clients=wait_for_clients,
        quiet_level="warning" if as_json else "error",  # the screen tells the rest
    )
    if resume:
        _need_root(settings)
    else:
        _make_root(settings)
    from common import parts
    from common.identity import Role
    from compose import screen
    from coordinator.assembly import serve

    shown = screen.choose(as_json=as_json)
    state = parts.state_dir(settings, Role.COORDINATOR, "coordinator")

    begin = functools.partial(shown.begin, state_dir=state)
    try:
        with _only_json(as_json):
            code = _run(serve(settings, hold=hold, resume=resume, report=shown.show, begin=begin))
    finally:
        shown.end()
    raise typer.Exit(code)


@app.command()
def client(
    client_id: ClientName,
    dataset: Dataset = None,
    model: ModelName = None,
    num_clients: NumClients = None,
    part: Annotated[
        int | None, typer.Option(min=1, help="Which part of the data it holds; read off the id if not given.")
    ] = None,
    partition: Partition = None,
    alpha: Alpha = None,
    max_examples: MaxExamples = None,
    seed: Seed = None,
    data_dir: DataDir = None,
    data_option: DataOption = None,
    model_option: ModelOption = None,
    device: Device = None,
    threads: Threads = None,
    brokers: Brokers = None,
    state_dir: StateDir = None,
    keys_dir: KeysDir = None,
    federation: Federation = None,
    log_level: LogLevel = None,
    log_file: LogFile = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Run one client: train on data that stays here, report signed updates."""
    settings = _load(config, **_training_flags(locals()), **_part_flags(locals()))
    from edge_client.assembly import serve

    report = _reporter(as_json=as_json)
    with _only_json(as_json):
        _run(serve(settings, client_id, report=report, part=part, threads=threads))


@app.command()
def outbox(
    client_id: ClientName,
    state_dir: StateDir = None,
    federation: Federation = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Show what a client on this machine still owes, and what became of its last updates."""
    settings = _load(config, **_part_flags(locals()))
    from compose import owed

    try:
        found = owed.look(settings, client_id)
    except FedmqError as error:
        _fail(error)
    for said in map(json.dumps, owed.events(found)) if as_json else owed.lines(found):
        print(said)


@app.command()
def start(
    num_rounds: NumRounds = None,
    brokers: Brokers = None,
    keys_dir: KeysDir = None,
    federation: Federation = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Start a run on a coordinator that holds."""
    from common.messages import Start

    _command(
        _load(config, **_part_flags(locals()), run__num_rounds=num_rounds),
        lambda it, us: Start(command=it, certificate=us, rounds=num_rounds),
        as_json=as_json,
    )


@app.command()
def stop(
    now: Annotated[bool, typer.Option("--now", help="Give the open round up.")] = False,
    brokers: Brokers = None,
    keys_dir: KeysDir = None,
    federation: Federation = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Stop the run after the open round, or now."""
    from common.messages import Stop

    _command(
        _load(config, **_part_flags(locals())),
        lambda it, us: Stop(command=it, certificate=us, now=now),
        as_json=as_json,
    )


@app.command()
def status(
    brokers: Brokers = None,
    keys_dir: KeysDir = None,
    federation: Federation = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Show who is here and where the run stands."""
    settings = _load(config, **_part_flags(locals()))
    from compose import operate

    picture = _run(operate.look(settings))
    facts = operate.state(picture)
    if as_json:
        print(json.dumps({"event": "status", **facts}))
    else:
        _print_status(facts)
    if not picture.is_online:
        raise typer.Exit(4)


@app.command()
def watch(
    brokers: Brokers = None,
    keys_dir: KeysDir = None,
    federation: Federation = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Show what passes on the topics, decoded and verified, until interrupted; never weights."""
    settings = _load(config, **_part_flags(locals()))
    from compose import operate

    _run(operate.watch(settings, _reporter(as_json=as_json, verb="message")))


@config_app.command("show")
def config_show(
    origin: Annotated[bool, typer.Option("--origin", help="Also say where each value came from.")] = False,
    running: Annotated[
        bool, typer.Option("--running", help="Ask the running coordinator for the configuration in force.")
    ] = False,
    brokers: Brokers = None,
    keys_dir: KeysDir = None,
    federation: Federation = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Show the effective settings."""
    settings = _load(config, **_part_flags(locals()))
    from common.settings import origins, values

    known: dict[str, Any] = dict(values(settings))
    if running:
        from common.errors import UnhealthyError
        from compose import operate

        in_force = _run(operate.look(settings)).config
        if in_force is None:
            _fail(UnhealthyError("no coordinator has published its configuration"))
        known = dict(in_force.settings)
    whence = origins(settings) if origin and not running else {}
    if as_json:
        print(json.dumps({"event": "config", "settings": known, "origins": whence}))
        return
    for name, value in known.items():
        shown = f"# {name} is not set" if value is None else f"{name} = {json.dumps(value)}"
        print(shown + (f"  # {whence[name]}" if whence else ""))


@keys_app.command("issue")
def keys_issue(
    role: Annotated[
        str, typer.Argument(metavar="ROLE", help="coordinator, client, operator, dashboard or bridge.")
    ],
    name: Annotated[str, typer.Argument(metavar="NAME", help="The participant's id.")],
    keys_dir: KeysDir = None,
    federation: Federation = None,
    config: Config = None,
) -> None:
    """Make a participant's key and certificate, to be copied to its machine; makes the root if there is none."""
    settings = _load(config, **_part_flags(locals()))
    _make_root(settings)
    from common import identity, parts

    directory = parts.keys_dir(settings)
    try:
        wanted = identity.Role(role)
    except ValueError:
        _fail(UsageError(f"no role is called {role!r}; there are: {', '.join(identity.Role)}"))
    try:
        identity.issue(directory, wanted, name)
    except FedmqError as error:
        _fail(error)
    stem = f"{wanted}-{name}"
    print(
        f"copy {stem}.key, {stem}.pem and root.pem from {directory} to the keys directory of {name}'s machine"
    )


@audit_app.command("verify")
def audit_verify(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or the path of its folder.")],
    root: Annotated[
        Path | None, typer.Option(help="The root's certificate; root.pem among the keys if not given.")
    ] = None,
    strategy: Strategy = None,
    state_dir: StateDir = None,
    keys_dir: KeysDir = None,
    federation: Federation = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Check a run's transcript and files, and make its models once more from the updates that it kept."""
    settings = _load(config, **_part_flags(locals()))
    from compose import examine
    from coordinator import audit

    try:
        with _only_json(as_json):
            folder = examine.locate(settings, run)
            trusted = examine.root_file(settings, root, folder)
            report = audit.verify(folder, examine.read_root(trusted), strategy=strategy)
    except FedmqError as error:
        _fail(error)
    shown = map(json.dumps, examine.events(report, trusted)) if as_json else examine.lines(report, trusted)
    for said in shown:
        print(said)
    if not report.ok:
        raise typer.Exit(WireError.exit_code)


def main() -> None:
    """Run the command line."""
    from common.crew import leave

    try:
        app()
    except SystemExit as end:
        leave(end.code if isinstance(end.code, int) else 0)


# --- what the verbs share -------------------------------------------------------------------------


def _training_flags(given: dict[str, Any]) -> dict[str, Any]:
    """Name the settings that flags of training verbs stand for."""
    names = {
        "dataset": "data__dataset",
        "data_dir": "data__data_dir",
        "num_clients": "data__num_clients",
        "partition": "data__partition",
        "alpha": "data__alpha",
        "max_examples": "data__max_examples",
        "model": "model__name",
        "local_epochs": "training__local_epochs",
        "batch_size": "training__batch_size",
        "lr": "training__lr",
        "optimizer": "training__optimizer",
        "momentum": "training__momentum",
        "device": "training__device",
        "num_rounds": "run__num_rounds",
        "mode": "run__mode",
        "late": "run__late",
        "buffer_size": "run__buffer_size",
        "strategy": "run__strategy",
        "codec": "run__codec",
        "cohort_size": "run__cohort_size",
        "quorum_share": "run__quorum_share",
        "patience": "run__patience",
        "keep_updates": "run__keep_updates",
        "seed": "seed",
    }
    flags = {setting: given.get(flag) for flag, setting in names.items()}
    flags["data__options"] = _pairs(given.get("data_option"))
    flags["model__options"] = _pairs(given.get("model_option"))
    return flags


def _part_flags(given: dict[str, Any]) -> dict[str, Any]:
    """Name the settings that flags of every part stand for."""
    names = {
        "brokers": "link__brokers",
        "state_dir": "state_dir",
        "keys_dir": "keys_dir",
        "federation": "federation",
        "log_level": "log__level",
        "log_file": "log__file",
    }
    return {setting: given.get(flag) for flag, setting in names.items()}


def _pairs(texts: list[str] | None) -> dict[str, str] | None:
    if not texts:
        return None
    split = [text.partition("=") for text in texts]
    wrong = [text for text, (_, equals, _) in zip(texts, split, strict=True) if not equals]
    if wrong:
        _fail(UsageError(f"an option is given as NAME=VALUE, not as {wrong[0]!r}"))
    return {name: value for name, _, value in split}


def _load(path: Path | None, *, quiet_level: str = "warning", **flags: object) -> "Settings":
    """Read the settings and set logging up: on a screen only what is wrong, unless a level was chosen."""
    from common import log
    from common.settings import load, origins

    try:
        settings = load(path, **flags)
    except FedmqError as error:
        _fail(error)
    quiet = settings.log.file is None and origins(settings)["log.level"] == "default"
    log.setup(quiet_level if quiet else settings.log.level, settings.log.format, settings.log.file)
    return settings


def _make_root(settings: "Settings") -> None:
    """Make the federation's root where this machine has neither root nor keys."""
    from common import identity, parts

    directory = parts.keys_dir(settings)
    if not (directory / "root.pem").exists():
        try:
            root = identity.create_root(directory, settings.federation)
        except FedmqError as error:
            _fail(error)
        print(f"made the root of federation {settings.federation}: {root.fingerprint}", file=sys.stderr)


def _need_root(settings: "Settings") -> None:
    """Make sure that the keys are there: a run is resumed with those that it was begun with."""
    from common import parts

    directory = parts.keys_dir(settings)
    if not (directory / "root.pem").exists():
        _fail(
            ConfigError(
                f"{directory} holds no root.pem, and --resume makes none",
                advice="Say with --keys-dir where the keys of the run are; without --resume a new run begins.",
            )
        )


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run a verb's coroutine, and turn what goes wrong into a sentence and an exit code."""
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise typer.Exit(1) from None
    except (FedmqError, BaseExceptionGroup) as error:
        cause = cause_of(error)
        if not isinstance(cause, FedmqError):
            raise
        _fail(cause)


def _only_json(as_json: bool) -> contextlib.AbstractContextManager[object]:
    """Send what plug-ins print to standard error, where standard output is for events."""
    return contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()


def _fail(error: FedmqError) -> NoReturn:
    print(f"error: {error}", file=sys.stderr)
    if error.advice:
        print(error.advice, file=sys.stderr)
    raise typer.Exit(error.exit_code)


def _reporter(*, as_json: bool, verb: str = "") -> Callable[[dict[str, object]], None]:
    """Print events: JSON Lines, or key=value for people."""
    out = sys.stdout

    def as_line(facts: dict[str, object]) -> None:
        print(json.dumps({"event": verb, **facts} if verb else facts), file=out, flush=True)

    def as_text(facts: dict[str, object]) -> None:
        shown = {name: value for name, value in facts.items() if value is not None and name != "event"}
        words = " ".join(f"{name}={value}" for name, value in shown.items())
        print(f"{facts.get('event', verb)} {words}".strip(), flush=True)

    return as_line if as_json else as_text


def _command(settings: "Settings", make: "Callable[[str, bytes], Start | Stop]", *, as_json: bool) -> None:
    from common.errors import CommandRefusedError
    from compose import operate

    answer = _run(operate.command(settings, make))
    if answer.refused:
        _fail(CommandRefusedError(answer.refused))
    _reporter(as_json=as_json)({"event": "command.taken", "run": answer.run})


def _print_status(facts: dict[str, Any]) -> None:
    from compose.wording import count

    print(f"coordinator: {facts['coordinator']}, {facts['phase'] or 'no word of a run'}")
    if facts["round"]:
        print(f"run: {facts['run']}, {count(facts['rounds'], 'round')}")
        print(f"round: {facts['round']}, {facts['reported']} of {facts['cohort']} reported")
    for name, about in facts["clients"].items():
        print(f"{name}: {about['state']}, {count(about['examples'], 'example')}, {about['model']}")
