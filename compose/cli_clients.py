"""`fedmq clients`: who takes part."""

import json
import sys
from typing import Annotated

import typer

from common.log import escape
from compose.cli_keys import take_back
from compose.cli_shared import command, errors_said, load, part_flags, run
from compose.options import (
    Brokers,
    Config,
    Federation,
    Json,
    KeysDir,
    PassphraseFile,
)

app = typer.Typer(help="The clients of the federation.", no_args_is_help=True)


@app.command("list")
def clients_list(
    brokers: Brokers = None,
    keys_dir: KeysDir = None,
    federation: Federation = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """List the clients that are known at the broker."""
    settings = load(config, **part_flags(locals()))
    from compose import operate

    for facts in operate.clients(run(operate.look(settings))):
        print(json.dumps({"event": "client", **facts}) if as_json else escape(operate.client_line(facts)))


@app.command("exclude")
def clients_exclude(
    client_id: Annotated[str, typer.Argument(metavar="CLIENT", help="The client's id.")],
    brokers: Brokers = None,
    keys_dir: KeysDir = None,
    federation: Federation = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Let a client take part no more, until it is admitted; its keys stay valid."""
    settings, name = load(config, **part_flags(locals())), _client_name(client_id)
    from common.messages import Exclude
    from compose import operate

    stranger = operate.stranger(run(operate.look(settings)), name)
    if stranger:
        print(f"warning: {escape(stranger)}", file=sys.stderr)
    command(
        settings,
        lambda it, us: Exclude(command=it, certificate=us, client=name),
        lambda _: (
            f"{name} is excluded: no round asks it, and what it reports is refused, until it is admitted"
        ),
        as_json=as_json,
    )


@app.command("admit")
def clients_admit(
    client_id: Annotated[str, typer.Argument(metavar="CLIENT", help="The client's id.")],
    brokers: Brokers = None,
    keys_dir: KeysDir = None,
    federation: Federation = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Let a client take part again that was excluded."""
    settings, name = load(config, **part_flags(locals())), _client_name(client_id)
    from common.messages import Admit

    command(
        settings,
        lambda it, us: Admit(command=it, certificate=us, client=name),
        lambda _: f"{name} is admitted: it takes part again",
        as_json=as_json,
    )


@app.command("revoke")
def clients_revoke(
    client_id: Annotated[str, typer.Argument(metavar="CLIENT", help="The client's id.")],
    passphrase_file: PassphraseFile = None,
    brokers: Brokers = None,
    keys_dir: KeysDir = None,
    federation: Federation = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Take a client's certificates back for good; as `fedmq keys revoke client CLIENT`."""
    take_back(load(config, **part_flags(locals())), "client", client_id, as_json=as_json)


def _client_name(text: str) -> str:
    from common.ids import client_id

    with errors_said():
        return client_id(text)
