"""Ports that nobody listens on."""

import socket


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def free_ports_in_a_row() -> int:
    """Find a port that is free together with the one after it."""
    while True:
        port = free_port()
        try:
            with socket.create_server(("127.0.0.1", port + 1)):
                return port
        except (OSError, OverflowError):
            continue
