"""Who has what, as text: a table of clients and classes, shaded by numbers, with bars of totals. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from common.census import Census
from common.partition import Indices
from compose.wording import count

CLIENTS_SHOWN = 50
BAR_CELLS_MIN, BAR_CELLS_MAX = 6, 30
SHADES = "·░▒▓█"  # of none, then of quarters of the largest number
_EIGHTHS = " ▏▎▍▌▋▊▉"

Event = dict[str, object]


@dataclass(frozen=True, slots=True)
class About:
    """What the census is of."""

    dataset: str
    partition: str
    seed: int


def names(num_clients: int) -> list[str]:
    """Name clients as a demo does."""
    return [f"client-{index}" for index in range(1, num_clients + 1)]


def event(about: About, census: Census) -> Event:
    """Say it for programs."""
    held = census.held
    return {
        "event": "data.shown",
        "dataset": about.dataset,
        "partition": about.partition if census.is_dealt else None,
        "seed": about.seed,
        "classes": None if census.classes is None else census.classes.tolist(),
        "clients": [
            {
                "client": name,
                "examples": int(examples),
                "counts": None if census.counts is None else census.counts[client].tolist(),
            }
            for client, (name, examples) in enumerate(
                zip(names(len(census.examples)), census.examples, strict=True)
            )
        ],
        "examples": _spread(census.examples),
        "classes_held": None if held is None else _spread(held),
        "skew": census.skew,
    }


def lines(about: About, census: Census, width: int) -> Iterator[str]:
    """Draw it for people, in lines of at most `width` characters where that can be."""
    yield title(about, census)
    yield ""
    yield from _table(census, width)
    yield ""
    for name, said in summary(census):
        yield f"{name:20}  {said}"


def title(about: About, census: Census) -> str:
    """Say what is shown."""
    dealt = f"{about.partition}, seed {about.seed}" if census.is_dealt else "each client its own"
    there_are = f"{int(census.examples.sum()):,} examples"
    if census.classes is not None:
        there_are += f" of {len(census.classes)} class{'' if len(census.classes) == 1 else 'es'}"
    return f"{about.dataset}, {dealt}: {there_are}, {count(len(census.examples), 'client')}"


def summary(census: Census) -> Iterator[tuple[str, str]]:
    """Say it in numbers: what is counted, and how it comes out."""
    yield "examples of a client", _words(census.examples)
    if census.held is None or census.skew is None:
        yield "classes of a client", "none: the labels of this data set are no integers"
        return
    yield "classes of a client", _words(census.held)
    meaning = "mean total-variation distance of a client's labels to all; 0 is alike"
    yield "skew", f"{census.skew:.3f}: {meaning}"


def folded(counts: Indices, most: int) -> tuple[Indices, int]:
    """Put neighbouring classes together until there are at most so many columns; say how many in each."""
    together = -(-counts.shape[1] // most)
    return np.add.reduceat(counts, np.arange(0, counts.shape[1], together), axis=1), together


def level(number: int, largest: int) -> int:
    """Say in which quarter of the largest number a number is: 1 to 4, or 0 for none."""
    return -(-4 * number // largest) if largest else 0


def _spread(numbers: Indices) -> dict[str, float]:
    return {
        "min": int(numbers.min()),
        "median": float(np.median(numbers)),
        "max": int(numbers.max()),
    }


def _words(numbers: Indices) -> str:
    return ", ".join(
        f"{name} {value:,.{0 if value == int(value) else 1}f}" for name, value in _spread(numbers).items()
    )


# --- the table ------------------------------------------------------------------------------------


def _table(census: Census, width: int) -> Iterator[str]:
    clients = names(len(census.examples))[:CLIENTS_SHOWN]
    left = max(map(len, clients))
    right = len(f"{int(census.examples.max()):,}")
    room = width - left - right - BAR_CELLS_MIN - 5  # what is between them
    head, rows, legend = _cells(census, max(room, 1))
    used = len(rows[0]) if rows[0] else -2
    bar_cells = min(max(width - left - right - used - 5, BAR_CELLS_MIN), BAR_CELLS_MAX)
    largest = int(census.examples.max())
    if head:
        yield f"{'':{left}}  {head}  {'examples':>{right}}".rstrip()
    for client, row, total in zip(clients, rows, census.examples.tolist(), strict=False):
        middle = f"  {row}" if row else ""
        yield f"{client:{left}}{middle}  {total:>{right},} {_bar(total, largest, bar_cells)}".rstrip()
    if len(census.examples) > CLIENTS_SHOWN:
        yield f"... and {count(len(census.examples) - CLIENTS_SHOWN, 'client')} more; --json tells of all"
    if legend:
        yield ""
        yield legend


def _cells(census: Census, room: int) -> tuple[str, list[str], str]:
    """Draw head, rows and legend as finely as there is room for: numbers, shades, or shades of several classes."""
    if census.counts is None or census.classes is None:
        return "", [""] * min(len(census.examples), CLIENTS_SHOWN), ""
    counts, labels = census.counts, list(map(str, census.classes.tolist()))
    widest = max(map(len, labels))
    wide, narrow = max(len(str(counts.max())) + 1, widest) + 1, max(widest, 2) + 1  # with a space
    for cell, is_numbered in ((wide, True), (narrow, False)):
        if cell * len(labels) - 1 <= room:
            head = " ".join(f"{label:>{cell - 1}}" for label in labels)
            return head, _rows(counts, cell - 1, " ", is_numbered=is_numbered), _legend(counts, 1)
    few, together = folded(counts, room)
    head = f"{labels[0]} to {labels[-1]}"
    return f"{head:<{few.shape[1]}}", _rows(few, 1, "", is_numbered=False), _legend(few, together)


def _rows(counts: Indices, cell: int, between: str, *, is_numbered: bool) -> list[str]:
    largest = int(counts.max())

    def drawn(number: int) -> str:
        shade = SHADES[level(number, largest)]
        if not number:
            return shade.rjust(cell)
        return f"{shade}{number:>{cell - 1}}" if is_numbered else shade * cell

    return [between.join(map(drawn, row)) for row in counts[:CLIENTS_SHOWN].tolist()]


def _legend(counts: Indices, together: int) -> str:
    largest = int(counts.max())
    steps = [largest * step // 4 for step in range(5)]
    told = [
        f"{shade} {low + 1 if low + 1 == high else f'{low + 1:,} to {high:,}'}"
        for shade, low, high in zip(SHADES[1:], steps, steps[1:], strict=False)
        if low < high
    ]
    each = "a class" if together == 1 else f"{together} classes, a column"
    return f"{SHADES[0]} none  {'  '.join(told)}  examples of {each}"


def _bar(number: int, largest: int, cells: int) -> str:
    """Draw a bar in eighths of a cell; a thin one where there is anything at all."""
    eighths = max(round(8 * cells * number / largest), 1) if number else 0
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
