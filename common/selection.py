"""Which tensors of a model do patterns name? Names as `fnmatch` takes them, and `bn` for all normalisation layers.

select(module, ("5.*", "bn")) -> the elements of those tensors in the flat vector, bool[d]
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import numpy as np

from common import models
from common.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import torch

    from common.tensors import Selected

NORMALISATION = "bn"


def select(module: torch.nn.Module, patterns: Iterable[str]) -> Selected:
    """Mark what patterns name. Raises: ConfigError where one names nothing, or all together name everything."""
    chosen = names(module, patterns)
    tensors = models.schema_of(module).tensors
    if len(chosen) == len(tensors):
        raise ConfigError("every tensor of the model is personal: nothing is left to be trained together")
    return np.repeat([tensor.name in chosen for tensor in tensors], [tensor.elements for tensor in tensors])


def names(module: torch.nn.Module, patterns: Iterable[str]) -> set[str]:
    """Name the tensors that patterns name. Raises: ConfigError where one names nothing."""
    known = [tensor.name for tensor in models.schema_of(module).tensors]
    return {name for pattern in patterns for name in _named(module, pattern, known)}


def _named(module: torch.nn.Module, pattern: str, known: Sequence[str]) -> set[str]:
    if pattern == NORMALISATION:
        layers = tuple(f"{layer}." for layer in _normalisations(module))
        found = {name for name in known if name.startswith(layers)}
    else:
        found = {name for name in known if fnmatchcase(name, pattern)}
    if not found:
        what = "normalisation layer" if pattern == NORMALISATION else f"tensor named {pattern!r}"
        raise ConfigError(f"the model has no {what}; its tensors are: {', '.join(known)}")
    return found


def _normalisations(module: torch.nn.Module) -> list[str]:
    from torch import nn

    kinds = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)  # noqa: SLF001 - there is no public name
    return [name for name, layer in module.named_modules() if isinstance(layer, kinds)]
