"""`python -m broker`: one broker, until it is told to stop."""

import argparse
import asyncio
import sys
from pathlib import Path

from broker.engine import BrokerPolicy, serve
from common.errors import FedmqError


def main() -> int:
    """Run a broker as the command line says; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m broker", description=__doc__)
    parser.add_argument("--engine", choices=("amqtt", "mosquitto"), default="amqtt")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=1883, help="0 takes a free one")
    parser.add_argument("--ws-port", type=int, help="also MQTT over WebSocket")
    parser.add_argument("--state-dir", type=Path)
    policy = BrokerPolicy(**vars(parser.parse_args()))
    try:
        asyncio.run(serve(policy, lambda host, port: print(f"listening on {host}:{port}", flush=True)))
    except FedmqError as error:
        sys.stderr.write(f"{error}\n{error.advice}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
