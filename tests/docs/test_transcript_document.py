"""What coordinator/TRANSCRIPT.md says of the lines is so."""

import re
from pathlib import Path

from coordinator import transcript
from coordinator.transcript import AnyFact, Concluded, Decline, MergedUpdate, Refusal

DOCUMENT = (Path(__file__).parents[2] / "coordinator/TRANSCRIPT.md").read_text(encoding="utf-8")


def rows(table):
    """Read the names in the first cell of each row, with the kinds of the second."""
    found = re.findall(r"^\| (`.+?`) \| (.+?) \|", table, re.MULTILINE)
    return {
        (name.strip("`"), kind.strip("`"))
        for names, kinds in found
        for name in names.split(", ")
        for kind in kinds.split(", ")
    }


def fields(**kinds):
    return {(name, tag) for tag, kind in kinds.items() for name in kind.__struct_fields__}


def without_all(there_are, table):
    everywhere = {name for name, kind in table if kind == "all"}
    return {(name, kind) for name, kind in there_are if name not in everywhere}, {
        (name, kind) for name, kind in table if kind != "all"
    }


def test_every_field_is_explained_with_its_lines():
    lines, entries = DOCUMENT.split("Each of `updates`")
    kinds = {str(kind.__struct_config__.tag): kind for kind in AnyFact.__args__}
    there_are, told = without_all(fields(**kinds), rows(lines))
    assert there_are == told
    there_are, told = without_all(
        fields(updates=MergedUpdate, refusals=Refusal, declined=Decline), rows(entries)
    )
    assert there_are == told


def test_the_example_is_a_line_of_a_transcript():
    (example,) = re.findall(r"^```json\n(.+)\n```$", DOCUMENT, re.MULTILINE)
    fact = transcript.read(example.encode()).fact
    assert isinstance(fact, Concluded)
    assert [update.client for update in fact.updates] == ["ann"]


def test_the_domain_is_that_of_the_code():
    assert f'PAE("{transcript.DOMAIN.decode()}"' in DOCUMENT
