"""Messages for stories: small, valid, and told apart by one word."""

from common.ids import ClientId, Digest, RunId, sha256
from common.messages import Manifest, Plan, Task, Update

BASE = sha256(b"base")
SCHEMA = sha256(b"schema")
RUN = RunId("run-1")


def manifest(word: str, size: int = 8) -> Manifest:
    return Manifest(
        digest=sha256(word.encode()), size=size, chunk=1024, hashes=b"h" * 16, codec="none", schema=SCHEMA
    )


def update(
    client: str, word: str = "", *, number: int = 1, base: Digest = BASE, examples: int = 10
) -> Update:
    return Update(
        run=RUN,
        round=number,
        client=ClientId(client),
        base=base,
        delta=manifest(word or f"delta of {client}"),
        examples=examples,
    )


def task(number: int = 1, base: str = "base") -> Task:
    return Task(run=RUN, round=number, base=manifest(base), plan=Plan(), codec="none", answer_within_s=60)
