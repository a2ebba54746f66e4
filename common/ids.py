"""Names and digests: what they are made of, and who may carry which.

A name is a whole topic level, the MQTT user name, the MQTT client id and the certificate's CN at once.
"""

import hashlib
import re
from typing import NewType

from common.errors import ConfigError

ClientId = NewType("ClientId", str)
FederationId = NewType("FederationId", str)
RunId = NewType("RunId", str)
Boot = NewType("Boot", str)  # 64 random bits in hex, new at each process start
Digest = NewType("Digest", str)  # SHA-256 in lower-case hex, 64 digits

NAME = r"[a-z0-9][a-z0-9-]{0,62}"
INVITATION = r"[0-9a-f]{16}"  # the id of its token
DIGEST = r"[0-9a-f]{64}"
COORDINATOR = "coordinator"
OPERATOR = "operator"
DASHBOARD = "dashboard"
BROKER = "broker"

_RESERVED_FEDERATIONS = {"mesh"}
_RESERVED_CLIENTS = {COORDINATOR, OPERATOR, BROKER}
_RESERVED_CLIENT_PREFIXES = (DASHBOARD, "bridge-", "broker-", "observer", "operator-", "coordinator-")


def sha256(data: bytes | memoryview) -> Digest:
    """Name bytes by their content."""
    return Digest(hashlib.sha256(data).hexdigest())


def is_name(text: str) -> bool:
    """Tell whether `text` can be a topic level of ours."""
    return re.fullmatch(NAME, text) is not None


def is_client_name(text: str) -> bool:
    """Tell whether a client may be called so: not by a name that other access rules belong to."""
    if re.fullmatch(INVITATION, text):  # newcomers go by such names
        return False
    return is_name(text) and text not in _RESERVED_CLIENTS and not text.startswith(_RESERVED_CLIENT_PREFIXES)


def client_id(text: str) -> ClientId:
    """Check a client's name as an operator gives it. Raises: ConfigError."""
    if not is_name(text):
        raise ConfigError(f"client id {text!r} does not match {NAME}")
    if not is_client_name(text):
        raise ConfigError(f"client id {text!r} is reserved; choose another name")
    return ClientId(text)


def federation_id(text: str) -> FederationId:
    """Check a federation's name as an operator gives it. Raises: ConfigError."""
    if not is_name(text):
        raise ConfigError(f"federation {text!r} does not match {NAME}")
    if text in _RESERVED_FEDERATIONS:
        raise ConfigError(f"federation {text!r} is reserved; choose another name")
    return FederationId(text)
