"""What a root has signed: one JSON line a certificate in `<keys>/issued.jsonl`, kept where the root's key is.

    {"serial":"1f…","role":"client","name":"client-1","kid":"9a…","not_after":"2031-11-23T10:00:00+00:00"}
    {"serial":"1f…","ends":"2026-12-01T10:00:00+00:00"}      it is to be revoked then

Not thread-safe, nor for two processes: `identity` holds the lock of the directory.
"""

import json
import os
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from cryptography import x509

from common import certificates
from common.certificates import Root
from common.errors import ConfigError

FILE = "issued.jsonl"


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate that the root has signed."""

    serial: int
    role: str
    name: str
    kid: str  # hex
    not_after: datetime
    ends: datetime | None = None  # it is revoked then, or was


class Register:
    """All of them, in the order they were signed."""

    def __init__(self, directory: Path) -> None:
        """Read the file. Raises: ConfigError."""
        self._path = directory / FILE
        self._all: dict[int, Issued] = {}
        try:
            text = self._path.read_bytes() if self._path.exists() else b""
            self._whole = text.rfind(b"\n") + 1  # a crash, or a full disk, may have left half a line behind
            for line in text[: self._whole].splitlines():
                self._take(json.loads(line))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{self._path} cannot be read: {error}",
                advice="It lists what the root has signed; mend the line, or take the file from a backup.",
            ) from error

    def all(self) -> tuple[Issued, ...]:
        """List all certificates."""
        return tuple(self._all.values())

    def of(self, role: str, name: str, now: datetime) -> tuple[Issued, ...]:
        """List the certificates of one participant that are valid now, the newest last."""
        return tuple(
            one
            for one in self._all.values()
            if (one.role, one.name) == (role, name)
            and one.not_after >= now
            and (one.ends is None or one.ends > now)
        )

    def add(self, root: Root, certificate: x509.Certificate) -> None:
        """Write a certificate down. Raises: OSError."""
        peer = certificates.check(root, certificates.der(certificate), certificate.not_valid_after_utc)
        self._append(
            {
                "serial": f"{peer.serial:x}",
                "role": peer.role.value,
                "name": peer.name,
                "kid": peer.kid.hex(),
                "not_after": peer.not_after.isoformat(),
            }
        )

    def end(self, serial: int, at: datetime) -> None:
        """Write down when a certificate is to be revoked; the earliest time stands. Raises: OSError."""
        known = self._all[serial].ends
        if known is None or at < known:
            self._append({"serial": f"{serial:x}", "ends": at.isoformat()})

    def ended(self, now: datetime) -> dict[int, datetime]:
        """List what is revoked by now, with its time."""
        return {
            one.serial: one.ends for one in self._all.values() if one.ends is not None and one.ends <= now
        }

    def _append(self, row: dict[str, str]) -> None:
        line = json.dumps(row).encode() + b"\n"
        with self._path.open("ab") as file:
            file.truncate(self._whole)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._whole += len(line)
        self._path.chmod(0o600)
        self._take(row)

    def _take(self, row: dict[str, str]) -> None:
        serial = int(row["serial"], 16)
        if "ends" in row:
            self._all[serial] = replace(self._all[serial], ends=datetime.fromisoformat(row["ends"]))
        else:
            not_after = datetime.fromisoformat(row["not_after"])
            self._all[serial] = Issued(serial, row["role"], row["name"], row["kid"], not_after)
