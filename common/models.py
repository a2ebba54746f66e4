"""The models: built by name, and read and written as one flat vector.

`(input_shape, num_classes, **options) -> torch.nn.Module` is all that a model of your own has to be.
Shapes: input_shape is (channels, height, width); a module maps float32[n, *input_shape] to
        float32[n, num_classes].
Laws:   1. Same name, shapes, options and seed: same weights. 2. No one else's random numbers are disturbed.
torch is imported late: whoever only wants the names pays nothing.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, cast

import numpy as np

from common import plugins
from common.errors import ConfigError, DecodeError, UsageError
from common.tensors import Schema, Vector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import torch

    Factory = Callable[..., torch.nn.Module]

Shape = tuple[int, ...]


def linear(input_shape: Shape, num_classes: int) -> torch.nn.Module:
    """Softmax regression."""
    from torch import nn

    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), num_classes))


def mlp(input_shape: Shape, num_classes: int, hidden: Sequence[int] = (200, 200)) -> torch.nn.Module:
    """The "2NN" of McMahan et al. 2017, §3 (arXiv:1602.05629): two hidden layers of 200."""
    from torch import nn

    widths = [math.prod(input_shape), *hidden]
    layers: list[torch.nn.Module] = [nn.Flatten()]
    for width, next_width in pairwise(widths):
        layers += [nn.Linear(width, next_width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], num_classes))


def cnn(input_shape: Shape, num_classes: int) -> torch.nn.Module:
    """The CNN of McMahan et al. 2017, §3 (arXiv:1602.05629): 1,663,370 parameters on MNIST."""
    from torch import nn

    channels, height, width = _image(input_shape)
    if min(height, width) < 4:
        raise ConfigError(f"cnn halves images twice; {height} x {width} is too small")
    return nn.Sequential(
        nn.Conv2d(channels, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * (height // 4) * (width // 4), 512),
        nn.ReLU(),
        nn.Linear(512, num_classes),
    )


def resnet18(input_shape: Shape, num_classes: int, groups: int = 32) -> torch.nn.Module:
    """ResNet-18 for small images: a 3 x 3 stem without pooling, and group normalisation.

    Source: He et al. 2016, §4.2 (arXiv:1512.03385); Wu and He 2018 (arXiv:1803.08494). Batch normalisation
    averages badly over clients whose data differ: Hsieh et al. 2020, §5 (arXiv:1910.00189).
    """
    from torch import nn
    from torchvision.models.resnet import BasicBlock, ResNet

    channels, _, _ = _image(input_shape)
    module = ResNet(
        BasicBlock,
        [2, 2, 2, 2],
        num_classes=num_classes,
        norm_layer=lambda width: nn.GroupNorm(groups, width),
    )
    module.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    module.maxpool = nn.Identity()
    return cast("torch.nn.Module", module)


MODELS: Mapping[str, Factory] = {"linear": linear, "mlp": mlp, "cnn": cnn, "resnet18": resnet18}


def build(
    name: str, input_shape: Shape, num_classes: int, seed: int = 0, **options: object
) -> torch.nn.Module:
    """Make a model by its name. Raises: UsageError, ConfigError."""
    import torch

    name, inline = plugins.parse(name)
    factory = plugins.find("fedmq.models", MODELS, name)
    if not callable(factory):
        raise UsageError(f"model {name!r} is not a function (input_shape, num_classes, **options)")
    with seeded(seed):
        module = plugins.call(name, factory, input_shape, num_classes, **{**inline, **options})
    if not isinstance(module, torch.nn.Module):
        raise UsageError(f"model {name!r} made a {type(module).__name__}, not a torch.nn.Module")
    return module


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Let torch draw from `seed` in here, and go on outside as if nothing had been drawn.

    Accelerators keep generators of their own, which are left alone: to ask for their state would start them,
    and a process that has started CUDA can no longer be forked.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def schema_of(module: torch.nn.Module) -> Schema:
    """Describe what of a module travels: parameters and floating-point buffers. Raises: ConfigError."""
    wire = [
        (name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape))
        for name, tensor in _state(module)
    ]
    try:
        return Schema.from_wire(wire)
    except DecodeError as error:
        raise ConfigError(f"this model cannot travel: {error}") from error


def get_flat(module: torch.nn.Module) -> Vector:
    """Copy a module's weights into one vector, in the order of its schema."""
    import torch

    flat = np.empty(sum(tensor.numel() for _, tensor in _state(module)), np.float32)
    rest = torch.from_numpy(flat)
    for _, tensor in _state(module):
        part, rest = rest[: tensor.numel()], rest[tensor.numel() :]
        part.view(tensor.shape).copy_(tensor)
    return flat


def set_flat(module: torch.nn.Module, vector: Vector) -> None:
    """Copy one vector into a module's weights. Raises: ConfigError where its length is not the module's."""
    import torch

    state = _state(module)
    elements = sum(tensor.numel() for _, tensor in state)
    if vector.shape != (elements,):
        raise ConfigError(f"a vector of {vector.size} elements does not fit a model of {elements}")
    # torch refuses memory that may not be written, such as a view of received bytes.
    rest = torch.from_numpy(vector if vector.flags.writeable else vector.copy())
    with torch.no_grad():
        for _, tensor in state:
            part, rest = rest[: tensor.numel()], rest[tensor.numel() :]
            tensor.copy_(part.view(tensor.shape))


def _image(shape: Shape) -> tuple[int, int, int]:
    """Take an image's shape apart. Raises: ConfigError where it is none."""
    if len(shape) != 3:
        raise ConfigError(
            f"this model takes images (channels, height, width), not inputs of the shape {shape}"
        )
    return shape[0], shape[1], shape[2]


def _state(module: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    """List the tensors that travel, in the order of `state_dict`; counters stay at home."""
    return [(name, tensor) for name, tensor in module.state_dict().items() if tensor.is_floating_point()]
