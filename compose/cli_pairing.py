"""`fedmq pair`: newcomers are invited and enrolled."""

import functools
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common.errors import ConfigError, UsageError
from compose.cli_shared import errors_said, fail, load, part_flags, reporter, run
from compose.options import (
    Brokers,
    Config,
    Federation,
    Json,
    KeysDir,
    KeyTypeOption,
    PassphraseFile,
)

if TYPE_CHECKING:
    from common.certificates import Role
    from common.invitation import Invitation
    from common.settings import Settings

app = typer.Typer(help="Let newcomers into the federation.", no_args_is_help=True)


@app.command("invite")
def pair_invite(
    name: Annotated[str | None, typer.Option(help="The newcomer's id; it chooses if not given.")] = None,
    role: Annotated[str, typer.Option(help="client, bridge, operator or dashboard.")] = "client",
    at: Annotated[
        str | None,
        typer.Option("--at", help="HOST:PORT that newcomers reach; the broker's, one port on, if not given."),
    ] = None,
    png: Annotated[Path | None, typer.Option(help="PNG file to draw it into.")] = None,
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
    settings = load(config, **part_flags(locals()))
    from compose import inviting, keyring

    if as_json and not yes and not (sys.stdin and sys.stdin.isatty()):
        fail(UsageError("nobody can be asked to compare codes", advice="Say --yes, or run it on a terminal."))
    with errors_said():
        wish = inviting.Wish(keyring.role_of(role), name or "", at, confirm=not yes, may_replace=replace)
        secret = keyring.passphrase(settings)
    show = functools.partial(inviting.show, png=png, svg=svg, as_json=as_json)
    run(inviting.invite(settings, wish, secret, show, reporter(as_json=as_json)))


@app.command("join")
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
    settings, invitation = invited(config, part_flags(locals()), code, image)
    report = reporter(as_json=as_json)
    enrolled_as = be_enrolled(settings, invitation, None, name, report)
    report({"event": "pairing.next", "command": _beginning(settings, *enrolled_as)})


def _beginning(settings: "Settings", role: "Role", name: str) -> str | None:
    """Spell the command with which who was enrolled begins, if there is one."""
    verb = {"client": f"client --client-id {name}", "operator": "status"}.get(role)
    keys = f" --keys-dir {shlex.quote(str(settings.keys_dir))}" if settings.keys_dir else ""
    return verb and f"fedmq {verb} --federation {settings.federation}{keys}"


def invited(
    path: Path | None, flags: dict[str, Any], code: str | None, image: Path | None
) -> "tuple[Settings, Invitation]":
    """Read an invitation, and the settings for the federation that it is for."""
    from common import invitation, qr

    with errors_said():
        if (code is None) is (image is None):
            raise UsageError("give the code, or a picture of it")
        text = qr.read_image(image) if image is not None else code
        read = invitation.parse(sys.stdin.readline() if text == "-" else str(text))
    if flags["federation"] is None:
        flags["federation"] = read.federation
    settings = load(path, **flags)
    if settings.federation != read.federation:
        fail(
            ConfigError(
                f"the invitation is for federation {read.federation!r}, not for {settings.federation!r}",
                advice="Leave out --federation, or ask for an invitation of that federation.",
            )
        )
    return settings, read


def be_enrolled(
    settings: "Settings",
    invitation: "Invitation",
    role: "Role | None",
    name: str | None,
    report: Callable[[dict[str, object]], None],
) -> "tuple[Role, str]":
    """Be enrolled; for one role, unless this machine is, and another role than that is an error."""
    from common import joining

    with errors_said():
        known = joining.enrolled_already(settings, invitation, role, name or "") if role else None
    if known is not None:
        report({"event": "pairing.known", "role": known[0], "name": known[1]})
    found = known or run(joining.join(settings, invitation, name or "", report))
    if role is not None and found[0] is not role:
        said = f"the invitation was for the role {found[0]}, not for {role}; its keys are kept"
        fail(ConfigError(said, advice=f"Start what is of that role, or ask for an invitation as {role}."))
    return found
