"""The deltas of a round as an aggregator reads them: row by row, or a few columns of all rows.

A round's deltas may be more than memory holds. An array is read where it is; what has to be decoded first is read as a
row as often as somebody asks, and spooled to a file that is mapped into memory as soon as columns are asked for.
Shapes: n rows of d elements, float32.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from common.tensors import Vector

COLUMNS = 4096  # at a time: of 50 rows 800 kB, which the cache holds

Matrix = NDArray[np.float32]


class Rows(Protocol):
    """What an aggregator reads. Nobody writes to what it gives out."""

    @property
    def shape(self) -> tuple[int, int]:
        """Say how many rows there are, of how many elements."""
        ...

    def row(self, index: int) -> Vector:
        """Give one row, float32[d]."""
        ...

    def columns(self, start: int, stop: int) -> Matrix:
        """Give these columns of all rows, float32[n, stop - start]."""
        ...


class Array:
    """Rows that are in memory, or a file that is mapped into it."""

    def __init__(self, deltas: Matrix) -> None:
        self.shape = (deltas.shape[0], deltas.shape[1])
        self._deltas = deltas

    def row(self, index: int) -> Vector:
        """Give one row."""
        return np.asarray(self._deltas[index])

    def columns(self, start: int, stop: int) -> Matrix:
        """Give these columns."""
        return self._deltas[:, start:stop]


class Spooled:
    """Rows that are made when they are asked for. Memory is that of one row."""

    def __init__(
        self, make: Sequence[Callable[[], Vector]], elements: int, directory: Path | None = None
    ) -> None:
        """`directory`: for the file that columns are read from; it has no name there, and is gone with this object."""
        self.shape = (len(make), elements)
        self._make, self._directory = make, directory
        self._spool: Matrix | None = None

    def row(self, index: int) -> Vector:
        """Make one row, or read it from the file once there is one."""
        return self._make[index]() if self._spool is None else self._spool[index]

    def columns(self, start: int, stop: int) -> Matrix:
        """Give these columns. Raises: OSError where there is no room for the file."""
        if self._spool is None:
            self._spool = self._write()
        return self._spool[:, start:stop]

    def _write(self) -> Matrix:
        with tempfile.TemporaryFile(dir=self._directory) as file:
            for make in self._make:
                file.write(make().data)
            file.flush()
            return np.memmap(file, np.float32, "r", shape=self.shape)


class Chosen:
    """Some of other rows, in this order."""

    def __init__(self, rows: Rows, chosen: Sequence[int]) -> None:
        self.shape = (len(chosen), rows.shape[1])
        self._rows, self._chosen = rows, list(chosen)

    def row(self, index: int) -> Vector:
        """Give one row."""
        return self._rows.row(self._chosen[index])

    def columns(self, start: int, stop: int) -> Matrix:
        """Give these columns."""
        return self._rows.columns(start, stop)[self._chosen]


class Mixed:
    """Weighted sums of other rows: row i is Σ_j mixing[i, j] · row j."""

    def __init__(self, rows: Rows, mixing: NDArray[np.float64]) -> None:
        self.shape = (mixing.shape[0], rows.shape[1])
        self.rows, self.mixing = rows, mixing
        self._single = mixing.astype(np.float32)

    def row(self, index: int) -> Vector:
        """Give one row."""
        return weighted_sum(self.rows, self.mixing[index]).astype(np.float32)

    def columns(self, start: int, stop: int) -> Matrix:
        """Give these columns."""
        return self._single @ self.rows.columns(start, stop)


class Scaled:
    """Other rows, each times a factor."""

    def __init__(self, rows: Rows, factors: NDArray[np.float64]) -> None:
        self.shape = rows.shape
        self._rows, self._factors = rows, factors.astype(np.float32)

    def row(self, index: int) -> Vector:
        """Give one row."""
        return np.asarray(self._rows.row(index) * self._factors[index])

    def columns(self, start: int, stop: int) -> Matrix:
        """Give these columns."""
        return self._rows.columns(start, stop) * self._factors[:, None]


def rows_of(deltas: "Rows | Matrix") -> Rows:
    """Let an array be read as rows."""
    return Array(np.asarray(deltas, np.float32)) if isinstance(deltas, np.ndarray) else deltas


def blocks(elements: int, size: int = COLUMNS) -> Iterator[tuple[int, int]]:
    """Cut d columns into blocks, as (start, stop)."""
    return ((start, min(start + size, elements)) for start in range(0, elements, size))


def weighted_sum(rows: Rows, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute Σ_i weight_i · row_i, in float64, row by row: memory is O(d), and the order is part of the result.

    Not by BLAS, whose order of summation depends on the processor: an audit makes the same model elsewhere.
    """
    if isinstance(rows, Mixed):
        return weighted_sum(rows.rows, weights @ rows.mixing)
    total = np.zeros(rows.shape[1])
    for index in np.flatnonzero(weights):
        add_scaled(total, rows.row(int(index)), float(weights[index]))
    return total


def add_scaled(total: NDArray[np.float64], row: Vector, factor: float) -> None:
    """Add factor · row to float64[d], by blocks that the cache holds: 3 times as long as reading the row."""
    for start, stop in blocks(row.size, 1 << 18):
        block = row[start:stop].astype(np.float64)
        block *= factor
        total[start:stop] += block
