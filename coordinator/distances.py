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


def squared_lengths(rows: Rows) -> Real:
    """Compute ‖x_i‖²; not finite where a row is not, or has an element above 1e19."""
    total = np.zeros(rows.shape[0])
    with np.errstate(over="ignore", invalid="ignore"):
        for start, stop in blocks(rows.shape[1]):
            block = rows.columns(start, stop)
            total += np.einsum("ij,ij->i", block, block)
    return total


def squared_distances(rows: Rows, lengths: Real) -> Real:
    """Compute ‖x_i − x_j‖², at least 0, with zeros on the diagonal. All rows are finite; `lengths` are squared ones."""
    n = rows.shape[0]
    gram = np.zeros((n, n))
    middle = int(np.argsort(lengths, kind="stable")[(n - 1) // 2])
    for start, stop in blocks(rows.shape[1]):
        block = rows.columns(start, stop)
        centred = block - block[middle]
        gram += centred @ centred.T
    own = np.diagonal(gram)
    apart = np.maximum(own[:, None] + own[None, :] - gram - gram.T, 0)
    np.fill_diagonal(apart, 0)
    return apart
