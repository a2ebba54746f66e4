"""A model of one's own: any torch module that maps float32[n, *input_shape] to float32[n, num_classes]."""

import math

from torch import nn


def build(input_shape: tuple[int, ...], num_classes: int, width: int = 32) -> nn.Module:
    """One hidden layer over normalised features."""
    features = math.prod(input_shape)
    return nn.Sequential(
        nn.Flatten(),
        nn.LayerNorm(features),
        nn.Linear(features, width),
        nn.GELU(),
        nn.Linear(width, num_classes),
    )
