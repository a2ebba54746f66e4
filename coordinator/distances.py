"""Lengths of rows and distances between them, from one Gram matrix.

Shapes: rows float32[n, d]; everything here is float64[n] or float64[n, n].
Precision: products are float32 by blocks of columns, sums of blocks float64. The error of a distance depends on its two
rows alone, so no third row can spoil it; what all rows have in common would cancel, and is taken off before: as the
row of median length, for a mean could be moved by one bad row as far as that pleases.
"""

import numpy as np
from numpy.typing import NDArray

from coordinator.rows import Rows, blocks

Real = NDArray[np.float64]
_LARGEST = 1e16  # of an element: sums of a block's squares are finite in float32, and so are distances


def are_finite(rows: Rows) -> NDArray[np.bool_]:
    """Tell which rows are finite, bool[n]; one with elements above 1e16 counts as if it were not: its square is not."""
    finite = np.ones(rows.shape[0], bool)
    for start, stop in blocks(rows.shape[1]):
        finite &= (np.abs(rows.columns(start, stop)) < _LARGEST).all(axis=1)
    return finite


def squared_lengths(rows: Rows) -> Real:
    """Compute ‖x_i‖² of finite rows."""
    total = np.zeros(rows.shape[0])
    for start, stop in blocks(rows.shape[1]):
        block = rows.columns(start, stop)
        total += np.einsum("ij,ij->i", block, block)
    return total


def squared_distances(rows: Rows) -> Real:
    """Compute ‖x_i − x_j‖² of finite rows, at least 0, with zeros on the diagonal."""
    n = rows.shape[0]
    lengths, gram = squared_lengths(rows), np.zeros((n, n))
    middle = int(np.argsort(lengths, kind="stable")[(n - 1) // 2])
    for start, stop in blocks(rows.shape[1]):
        block = rows.columns(start, stop)
        centred = block - block[middle]
        gram += centred @ centred.T
    own = np.diagonal(gram)
    apart = np.maximum(own[:, None] + own[None, :] - gram - gram.T, 0)
    np.fill_diagonal(apart, 0)
    return apart
