"""Who has how much of what: the parts of a data set, counted.

Shapes: examples int64[clients], classes int64[classes], counts int64[clients, classes].
Not here: how it looks (compose.portrait, compose.heatmap).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from common import datasets
from common.datasets import ClientData
from common.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from common.datasets import Data, DataSpec
    from common.partition import Indices, Labels


@dataclass(frozen=True, slots=True, eq=False)
class Census:
    """What there is at each client: what it trains on, and what it holds out."""

    examples: Indices  # [clients]
    classes: Labels | None  # [classes], those that occur, ascending; None where labels are no integers
    counts: Indices | None  # [clients, classes], likewise
    is_dealt: bool  # by a partition; else each client has what it has

    @property
    def held(self) -> Indices | None:
        """How many classes each client has."""
        return None if self.counts is None else np.count_nonzero(self.counts, axis=1)

    @property
    def skew(self) -> float | None:
        """How much clients' labels differ from those of all: the mean total-variation distance, from 0 to below 1.

        TV(p, q) = ½ Σ |p - q|. 0: each client is the whole in small. 1 - 1/classes: with as many of each class, each
        client has one.
        """
        if self.counts is None:
            return None
        has_some = self.counts[self.examples > 0]
        if not len(has_some):
            return None
        each = has_some / has_some.sum(axis=1, keepdims=True)
        whole = has_some.sum(axis=0) / has_some.sum()
        return float(np.abs(each - whole).sum(axis=1).mean() / 2)


def take(spec: DataSpec, names: Sequence[str]) -> Census:
    """Count what clients of these names have, the first of them the first part. Raises: as `datasets.client_data`."""
    if not names:
        raise ConfigError("there must be at least one client")
    first = datasets.load(spec, names[0], len(names))
    if isinstance(first, ClientData):
        others = (cast("ClientData", datasets.load(spec, name, len(names))) for name in names[1:])
        return _counted([_labels_of(data) for data in (first, *others)], is_dealt=False)
    labels = datasets.examples_of(spec, first).labels
    parts = datasets.deal(spec, first, len(names))
    mine = [datasets.own(spec, part, client) for client, part in enumerate(parts)]
    found = [np.full(len(part), None) if labels is None else labels[part] for part in mine]
    return _counted(found, is_dealt=True)


def _counted(labels: list[NDArray[Any]], *, is_dealt: bool) -> Census:
    """Count labels, one array for each client."""
    examples = np.array([len(one) for one in labels], np.int64)
    if any(one.dtype.kind not in "iu" for one in labels if len(one)):
        return Census(examples, None, None, is_dealt)
    classes, which = np.unique(np.concatenate(labels).astype(np.int64), return_inverse=True)
    cells = np.repeat(np.arange(len(labels)), examples) * len(classes) + which
    counts = np.bincount(cells, minlength=len(labels) * len(classes)).reshape(len(labels), len(classes))
    return Census(examples, classes, counts, is_dealt)


def _labels_of(data: ClientData) -> NDArray[Any]:
    """Read y of all that a client has."""
    return np.concatenate([_read(half) for half in (data.train, data.test) if half is not None])


def _read(data: Data) -> NDArray[Any]:
    from torch.utils.data import TensorDataset

    if isinstance(data, TensorDataset):
        labels = data.tensors[1].numpy()
        return labels if labels.ndim == 1 else np.full(len(labels), None)
    pairs = cast("Any", data)
    ys = [np.asarray(pairs[index][1]) for index in range(len(pairs))]
    if any(y.shape or y.dtype.kind not in "iu" for y in ys):
        return np.full(len(ys), None)
    return np.array(ys, np.int64)
