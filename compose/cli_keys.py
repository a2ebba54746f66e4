"""`fedmq keys`: the federation's root, its participants' keys and certificates."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.errors import TransportError, UsageError
from common.limits import ROTATION_OVERLAP_DAYS
from compose.cli_shared import errors_said, load, make_root, part_flags, run, tell
from compose.options import (
    Brokers,
    Config,
    Federation,
    Hosts,
    Json,
    KeysDir,
    KeyTypeOption,
    MemberName,
    PassphraseFile,
    RoleName,
)

if TYPE_CHECKING:
    from common.settings import Settings

app = typer.Typer(help="Keys and certificates of the federation.", no_args_is_help=True)


@app.command("init")
def init(
    key_type: KeyTypeOption = None,
    passphrase: Annotated[
        bool, typer.Option("--passphrase", help="Ask for a passphrase that locks the root's key.")
    ] = False,
    passphrase_file: PassphraseFile = None,
    keys_dir: KeysDir = None,
    federation: Federation = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Make the root of a federation: the key that vouches for everybody in it."""
    settings = load(config, **part_flags(locals()))
    from common import parts
    from compose import keyring

    with errors_said():
        secret = keyring.new_passphrase() if passphrase else parts.passphrase(settings)
        root, is_new = keyring.init(settings, secret)
    directory = str(parts.keys_dir(settings))
    facts = {"federation": root.federation, "fingerprint": root.fingerprint, "directory": directory}
    lines = [
        f"{'made' if is_new else 'there is already'} the root of federation {root.federation}",
        f"fingerprint: {root.fingerprint}",
        f"directory:   {directory}",
        "Keep a copy of root.key in a safe place: whoever has it can be anybody in the federation.",
    ]
    tell({"event": "root.made", **facts, "is_new": is_new}, lines, as_json=as_json)


@app.command("show")
def show(
    keys_dir: KeysDir = None,
    federation: Federation = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Show the root, the keys that are here, and all certificates that the root has signed."""
    settings = load(config, **part_flags(locals()))
    from compose import keyring

    with errors_said():
        facts = keyring.shown(settings, datetime.now(UTC))
        for said in map(json.dumps, facts) if as_json else keyring.lines(facts):
            print(said)


@app.command("issue")
def issue(
    role: RoleName,
    name: MemberName,
    hosts: Hosts = None,
    key_type: KeyTypeOption = None,
    passphrase_file: PassphraseFile = None,
    keys_dir: KeysDir = None,
    federation: Federation = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Make a participant's key and certificate here; makes the root if there is none."""
    settings = load(config, **part_flags(locals()), broker__hosts=hosts)
    from common import identity, parts
    from compose import keyring

    with errors_said():
        wanted = keyring.role_of(role)
    make_root(settings)
    directory = parts.keys_dir(settings)
    with errors_said():
        made = identity.issue(
            directory,
            wanted,
            name,
            identity.KeyType(settings.key_type),
            hosts=settings.broker.hosts,
            passphrase=parts.passphrase(settings),
            root_passphrase=keyring.passphrase(settings),
        )
    take_along = f"fedmq keys export {wanted} {name} --federation {settings.federation} --to DIRECTORY"
    tell(
        {
            "event": "certificate.issued",
            "role": wanted,
            "name": name,
            "kid": made.kid.hex(),
            "directory": str(directory),
        },
        [f"{wanted} {name} is in {directory}", f"take it to another machine: {take_along}"],
        as_json=as_json,
    )


@app.command("export")
def export(
    role: Annotated[
        str | None,
        typer.Argument(metavar="ROLE", help="Whose, with NAME; the root's certificate alone if not given."),
    ] = None,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="The participant's id.")] = None,
    to: Annotated[Path, typer.Option("--to", help="Directory to copy into.")] = Path(),
    keys_dir: KeysDir = None,
    federation: Federation = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Copy the root's certificate, or with ROLE and NAME all that a participant needs on its machine."""
    settings = load(config, **part_flags(locals()))
    from common import identity, parts
    from compose import keyring

    with errors_said():
        if (role is None) is not (name is None):
            raise UsageError("give both ROLE and NAME, or neither")
        whose = keyring.role_of(role) if role is not None else None
        files = [str(path) for path in keyring.export(settings, to, whose, name or "")]
        fingerprint = identity.read_root(parts.keys_dir(settings)).fingerprint
    tell(
        {"event": "keys.exported", "role": whose, "name": name, "files": files, "fingerprint": fingerprint},
        [*files, f"root: {fingerprint}"],
        as_json=as_json,
    )


@app.command("rotate")
def rotate(
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
    as_json: Json = False,
) -> None:
    """Give a participant whose keys are here, beside the root's, a new key and certificate."""
    settings = load(config, **part_flags(locals()))
    from compose import keyring

    with errors_said():
        ends = keyring.rotate(settings, keyring.role_of(role), name, overlap_days, key_type)
    tell(
        {"event": "certificate.replaced", "role": role, "name": name, "ends": ends.isoformat()},
        [
            f"{role} {name} has a new key; restart it to use it. The old one counts until {ends:%Y-%m-%d %H:%M} UTC"
        ],
        as_json=as_json,
    )


@app.command("revoke")
def revoke(
    role: RoleName,
    name: MemberName,
    passphrase_file: PassphraseFile = None,
    brokers: Brokers = None,
    keys_dir: KeysDir = None,
    federation: Federation = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Take back all certificates of a participant, and tell the federation; again tells it again."""
    take_back(load(config, **part_flags(locals())), role, name, as_json=as_json)


def take_back(settings: "Settings", role: str, name: str, *, as_json: bool) -> None:
    from compose import keyring

    with errors_said():
        wanted, secret = keyring.role_of(role), keyring.passphrase(settings)
    why = run(keyring.revoke(settings, wanted, name, secret))
    again = "run this again when the broker can be reached, or restart the coordinator"
    told = f"not told yet ({why}): {again}" if why else "told to the federation"
    tell(
        {"event": "certificate.revoked", "role": wanted, "name": name, "told": not why, "why": why},
        [f"revoked {wanted} {name}; {told}"],
        as_json=as_json,
    )
    if why:
        raise typer.Exit(TransportError.exit_code)
