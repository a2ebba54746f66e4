"""`fedmq clients`: who takes part."""

import json
from typing import Annotated

import typer

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
        print(json.dumps({"event": "client", **facts}) if as_json else operate.client_line(facts))


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
    from common.messages import Exclude

    command(
        load(config, **part_flags(locals())),
        lambda it, us: Exclude(command=it, certificate=us, client=_client_name(client_id)),
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
    from common.messages import Admit

    command(
        load(config, **part_flags(locals())),
        lambda it, us: Admit(command=it, certificate=us, client=_client_name(client_id)),
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
) -> None:
    """Take a client's certificates back for good; as `fedmq keys revoke client CLIENT`."""
    take_back(load(config, **part_flags(locals())), "client", client_id)


def _client_name(text: str) -> str:
    from common.ids import client_id

    with errors_said():
        return client_id(text)
