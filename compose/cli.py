"""The one command line. Every verb parses, calls one function, prints.

What is slow to import (torch, pydantic, paho, amqtt) is imported inside the verbs: `--help` answers at once.
"""

import asyncio
import contextlib
import functools
import json
import os
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer

from common.errors import ConfigError, FedmqError, UsageError, WireError, cause_of
from common.limits import ROTATION_OVERLAP_DAYS
from common.log import escape
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
    Hosts,
    Insecure,
    JoinCode,
    JoinImage,
    Json,
    KeepUpdates,
    KeysDir,
    KeyTypeOption,
    Late,
    LocalEpochs,
    LogFile,
    LogLevel,
    Lr,
    MaxExamples,
    MemberName,
    Mode,
    ModelName,
    ModelOption,
    Momentum,
    NumClients,
    NumRounds,
    Optimizer,
    Pairing,
    PairingPort,
    Partition,
    PassphraseFile,
    Patience,
    Port,
    QuorumShare,
    Resume,
    RoleName,
    Seed,
    StateDir,
    Strategy,
    Threads,
    TlsOption,
    WaitFor,
    WsPort,
)

if TYPE_CHECKING:
    from common.certificates import Role
    from common.ingress import Command
    from common.invitation import Invitation
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
clients_app = typer.Typer(help="The clients of the federation.", no_args_is_help=True)
pair_app = typer.Typer(help="Let newcomers into the federation.", no_args_is_help=True)
config_app = typer.Typer(help="The configuration.", no_args_is_help=True)
audit_app = typer.Typer(help="What a run's folder proves.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")
app.add_typer(clients_app, name="clients")
app.add_typer(pair_app, name="pair")
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
    tls: TlsOption = None,
    insecure: Insecure = None,
    pairing: Pairing = None,
    pairing_port: PairingPort = None,
    hosts: Hosts = None,
    key_type: KeyTypeOption = None,
    passphrase_file: PassphraseFile = None,
    state_dir: StateDir = None,
    keys_dir: KeysDir = None,
    federation: Federation = None,
    log_level: LogLevel = None,
    log_file: LogFile = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Run a broker until it is interrupted."""
    settings = _load(
        config,
        **_part_flags(locals()),
        broker__host=host,
        broker__port=port,
        broker__ws_port=ws_port,
        broker__engine=engine,
        broker__tls=tls,
        broker__insecure=insecure,
        broker__pairing=pairing,
        broker__pairing_port=pairing_port,
        broker__hosts=hosts,
    )
    from broker.assembly import policy_of
    from broker.engine import Running, serve

    report = _reporter(as_json=as_json)

    def ready(at: Running) -> None:
        report({"event": "broker.listening", **at.facts()})

    with _errors_said():
        policy = policy_of(settings)
    _run(serve(policy, ready))


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
    key_type: KeyTypeOption = None,
    passphrase_file: PassphraseFile = None,
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
    client_id: Annotated[
        str | None, typer.Option("--client-id", help="The client's id: lower-case letters, digits, hyphens.")
    ] = None,
    join: JoinCode = None,
    join_image: JoinImage = None,
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
    key_type: KeyTypeOption = None,
    passphrase_file: PassphraseFile = None,
    state_dir: StateDir = None,
    keys_dir: KeysDir = None,
    federation: Federation = None,
    log_level: LogLevel = None,
    log_file: LogFile = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Run one client: train on data that stays here, report signed updates. With --join it is enrolled first."""
    flags = {**_training_flags(locals()), **_part_flags(locals())}
    report = _reporter(as_json=as_json)
    if join is not None or join_image is not None:
        settings, invitation = _invited(config, flags, join, join_image)
        from common.certificates import Role

        _, name = _join(settings, invitation, Role.CLIENT, client_id, report)
    else:
        settings = _load(config, **flags)
        if client_id is None:
            _fail(UsageError("say who this client is with --client-id, or let it be enrolled with --join"))
        name = client_id
    from edge_client.assembly import serve

    with _only_json(as_json):
        _run(serve(settings, name, report=report, part=part, threads=threads))


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
        print(escape(said))


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


@keys_app.command("init")
def keys_init(
    key_type: KeyTypeOption = None,
    passphrase: Annotated[
        bool, typer.Option("--passphrase", help="Ask for a passphrase that locks the root's key.")
    ] = False,
    passphrase_file: PassphraseFile = None,
    keys_dir: KeysDir = None,
    federation: Federation = None,
    config: Config = None,
) -> None:
    """Make the root of a federation: the key that vouches for everybody in it."""
    settings = _load(config, **_part_flags(locals()))
    from common import parts
    from compose import keyring

    with _errors_said():
        secret = keyring.new_passphrase() if passphrase else parts.passphrase(settings)
        root, is_new = keyring.init(settings, secret)
        print(f"{'made' if is_new else 'there is already'} the root of federation {root.federation}")
        print(f"fingerprint: {root.fingerprint}")
        print(f"directory:   {parts.keys_dir(settings)}")
        print("Keep a copy of root.key in a safe place: whoever has it can be anybody in the federation.")


@keys_app.command("show")
def keys_show(
    keys_dir: KeysDir = None,
    federation: Federation = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Show the root, the keys that are here, and all certificates that the root has signed."""
    settings = _load(config, **_part_flags(locals()))
    from compose import keyring

    with _errors_said():
        facts = keyring.shown(settings)
        for said in map(json.dumps, facts) if as_json else keyring.lines(facts):
            print(said)


@keys_app.command("issue")
def keys_issue(
    role: RoleName,
    name: MemberName,
    hosts: Hosts = None,
    key_type: KeyTypeOption = None,
    passphrase_file: PassphraseFile = None,
    keys_dir: KeysDir = None,
    federation: Federation = None,
    config: Config = None,
) -> None:
    """Make a participant's key and certificate here; makes the root if there is none."""
    settings = _load(config, **_part_flags(locals()), broker__hosts=hosts)
    _make_root(settings)
    from common import identity, parts
    from compose import keyring

    with _errors_said():
        wanted = keyring.role_of(role)
        identity.issue(
            parts.keys_dir(settings),
            wanted,
            name,
            identity.KeyType(settings.key_type),
            hosts=settings.broker.hosts,
            passphrase=parts.passphrase(settings),
            root_passphrase=keyring.passphrase(settings),
        )
    print(f"{wanted} {name} is in {parts.keys_dir(settings)}")
    export = f"fedmq keys export {wanted} {name} --federation {settings.federation} --to DIRECTORY"
    print(f"take it to another machine: {export}")


@keys_app.command("export")
def keys_export(
    role: Annotated[
        str | None, typer.Argument(metavar="[ROLE", help="Whose; the root's if not given.")
    ] = None,
    name: Annotated[str | None, typer.Argument(metavar="NAME]", help="The participant's id.")] = None,
    to: Annotated[Path, typer.Option("--to", help="Directory to copy into.")] = Path(),
    keys_dir: KeysDir = None,
    federation: Federation = None,
    config: Config = None,
) -> None:
    """Copy the root's certificate, or with ROLE and NAME all that a participant needs on its machine."""
    settings = _load(config, **_part_flags(locals()))
    from common import identity, parts
    from compose import keyring

    with _errors_said():
        if (role is None) is not (name is None):
            raise UsageError("give both ROLE and NAME, or neither")
        whose = keyring.role_of(role) if role is not None else None
        written = identity.export(parts.keys_dir(settings), to, whose, name or "")
        for path in written:
            print(path)
        print(f"root: {identity.read_root(parts.keys_dir(settings)).fingerprint}")


@keys_app.command("rotate")
def keys_rotate(
    role: RoleName,
    name: MemberName,
    overlap_days: Annotated[
        float, typer.Option(min=0, max=366, help="Days for which the old certificate counts as well.")
    ] = ROTATION_OVERLAP_DAYS,
    key_type: KeyTypeOption = None,
    passphrase_file: PassphraseFile = None,
    keys_dir: KeysDir = None,
    federation: Federation = None,
    config: Config = None,
) -> None:
    """Give a participant whose keys are here, beside the root's, a new key and certificate."""
    settings = _load(config, **_part_flags(locals()))
    from compose import keyring

    with _errors_said():
        ends = keyring.rotate(settings, keyring.role_of(role), name, overlap_days, key_type)
    print(
        f"{role} {name} has a new key; restart it to use it. The old one counts until {ends:%Y-%m-%d %H:%M} UTC"
    )


@keys_app.command("revoke")
def keys_revoke(
    role: RoleName,
    name: MemberName,
    passphrase_file: PassphraseFile = None,
    brokers: Brokers = None,
    keys_dir: KeysDir = None,
    federation: Federation = None,
    config: Config = None,
) -> None:
    """Take back all certificates of a participant, and tell the federation; again tells it again."""
    _revoke(_load(config, **_part_flags(locals())), role, name)


@pair_app.command("invite")
def pair_invite(
    name: Annotated[str | None, typer.Option(help="The newcomer's id; it chooses if not given.")] = None,
    role: Annotated[str, typer.Option(help="client, bridge, operator or dashboard.")] = "client",
    at: Annotated[
        str | None,
        typer.Option("--at", help="HOST:PORT that newcomers reach; the broker's, one port on, if not given."),
    ] = None,
    png: Annotated[Path | None, typer.Option(help="File to draw the code into.")] = None,
    svg: Annotated[Path | None, typer.Option(help="File to draw the code into.")] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Let in whoever holds the code, without comparing six digits.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Also a name that has a certificate already.")
    ] = False,
    passphrase_file: PassphraseFile = None,
    brokers: Brokers = None,
    keys_dir: KeysDir = None,
    federation: Federation = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Show a code that lets one newcomer in, once, within ten minutes; run it where the root's key is."""
    settings = _load(config, **_part_flags(locals()))
    from compose import inviting, keyring

    with _errors_said():
        wish = inviting.Wish(keyring.role_of(role), name or "", at, confirm=not yes, may_replace=replace)
        secret = keyring.passphrase(settings)
    show = functools.partial(
        inviting.show, png=png, svg=svg, as_json=as_json, is_named=bool(name) or role != "client"
    )
    _run(inviting.invite(settings, wish, secret, show, _reporter(as_json=as_json)))


@pair_app.command("join")
def pair_join(
    code: Annotated[
        str | None, typer.Argument(metavar="CODE", help="The invitation; - reads it from standard input.")
    ] = None,
    image: Annotated[
        Path | None, typer.Option("--image", metavar="FILE", help="Picture of the invitation's QR code.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The id that is wanted; as invited if not given.")] = None,
    key_type: KeyTypeOption = None,
    passphrase_file: PassphraseFile = None,
    keys_dir: KeysDir = None,
    federation: Federation = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Be enrolled with an invitation, in whatever role it is for, and keep the keys."""
    settings, invitation = _invited(config, _part_flags(locals()), code, image)
    _join(settings, invitation, None, name, _reporter(as_json=as_json))


@clients_app.command("list")
def clients_list(
    brokers: Brokers = None,
    keys_dir: KeysDir = None,
    federation: Federation = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """List the clients that are known at the broker."""
    settings = _load(config, **_part_flags(locals()))
    from compose import operate

    for facts in operate.clients(_run(operate.look(settings))):
        print(json.dumps({"event": "client", **facts}) if as_json else operate.client_line(facts))


@clients_app.command("exclude")
def clients_exclude(
    client_id: Annotated[str, typer.Argument(metavar="CLIENT", help="The client's id.")],
    brokers: Brokers = None,
    keys_dir: KeysDir = None,
    federation: Federation = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Let a client take part no more, until it is admitted; its keys stay valid."""
    from common.messages import Exclude

    _command(
        _load(config, **_part_flags(locals())),
        lambda it, us: Exclude(command=it, certificate=us, client=_client_name(client_id)),
        as_json=as_json,
    )


@clients_app.command("admit")
def clients_admit(
    client_id: Annotated[str, typer.Argument(metavar="CLIENT", help="The client's id.")],
    brokers: Brokers = None,
    keys_dir: KeysDir = None,
    federation: Federation = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Let a client take part again that was excluded."""
    from common.messages import Admit

    _command(
        _load(config, **_part_flags(locals())),
        lambda it, us: Admit(command=it, certificate=us, client=_client_name(client_id)),
        as_json=as_json,
    )


@clients_app.command("revoke")
def clients_revoke(
    client_id: Annotated[str, typer.Argument(metavar="CLIENT", help="The client's id.")],
    passphrase_file: PassphraseFile = None,
    brokers: Brokers = None,
    keys_dir: KeysDir = None,
    federation: Federation = None,
    config: Config = None,
) -> None:
    """Take a client's certificates back for good; as `fedmq keys revoke client CLIENT`."""
    _revoke(_load(config, **_part_flags(locals())), "client", client_id)


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
        print(escape(said))
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
        "key_type": "key_type",
        "passphrase_file": "passphrase_file",
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
        with _errors_said():
            root = identity.create_root(
                directory,
                settings.federation,
                identity.KeyType(settings.key_type),
                parts.passphrase(settings),
            )
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


@contextlib.contextmanager
def _errors_said() -> Iterator[None]:
    """Turn what goes wrong into a sentence and an exit code."""
    try:
        yield
    except FedmqError as error:
        _fail(error)


def _client_name(text: str) -> str:
    from common.ids import client_id

    with _errors_said():
        return client_id(text)


def _invited(
    path: Path | None, flags: dict[str, Any], code: str | None, image: Path | None
) -> "tuple[Settings, Invitation]":
    """Read an invitation, and the settings for the federation that it is for."""
    from common import invitation, qr

    with _errors_said():
        if (code is None) is (image is None):
            raise UsageError("give the code, or a picture of it")
        text = qr.read_image(image) if image is not None else code
        read = invitation.parse(sys.stdin.readline() if text == "-" else str(text))
    if flags["federation"] is None:
        flags["federation"] = read.federation
    settings = _load(path, **flags)
    if settings.federation != read.federation:
        _fail(
            ConfigError(
                f"the invitation is for federation {read.federation!r}, not for {settings.federation!r}",
                advice="Leave out --federation, or ask for an invitation of that federation.",
            )
        )
    return settings, read


def _join(
    settings: "Settings",
    invitation: "Invitation",
    role: "Role | None",
    name: str | None,
    report: Callable[[dict[str, object]], None],
) -> "tuple[Role, str]":
    """Be enrolled; for one role, unless this machine is, and another role than that is an error."""
    from common import joining

    with _errors_said():
        known = joining.enrolled_already(settings, invitation, role, name or "") if role else None
    if known is not None:
        report({"event": "pairing.known", "role": known[0], "name": known[1]})
    found = known or _run(joining.join(settings, invitation, name or "", report))
    if role is not None and found[0] is not role:
        _fail(ConfigError(f"the invitation was for a {found[0]}, not for a {role}; its keys are kept"))
    return found


def _revoke(settings: "Settings", role: str, name: str) -> None:
    from compose import keyring

    with _errors_said():
        wanted, secret = keyring.role_of(role), keyring.passphrase(settings)
    told = _run(keyring.revoke(settings, wanted, name, secret))
    print(f"revoked {wanted} {name}; {told}")


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
        print(escape(f"{facts.get('event', verb)} {words}".strip()), flush=True)

    return as_line if as_json else as_text


def _command(settings: "Settings", make: "Callable[[str, bytes], Command]", *, as_json: bool) -> None:
    from common.errors import CommandRefusedError
    from compose import operate

    answer = _run(operate.command(settings, make))
    if answer.refused:
        _fail(CommandRefusedError(escape(answer.refused)))
    _reporter(as_json=as_json)({"event": "command.taken", "run": answer.run})


def _print_status(facts: dict[str, Any]) -> None:
    from compose.wording import count

    lines = [f"coordinator: {facts['coordinator']}, {facts['phase'] or 'no word of a run'}"]
    if facts["round"]:
        lines.append(f"run: {facts['run']}, {count(facts['rounds'], 'round')}")
        lines.append(f"round: {facts['round']}, {facts['reported']} of {facts['cohort']} reported")
    for name, about in facts["clients"].items():
        lines.append(f"{name}: {about['state']}, {count(about['examples'], 'example')}, {about['model']}")
    for line in lines:
        print(escape(line))  # words of peers are among them: they must not steer a terminal
