"""Models and data that go wrong, found as `support.troubled:name`."""

import torch
from torch import nn
from torch.utils.data import TensorDataset

from common.datasets import ClientData


class _Explodes(nn.Module):
    """Trains into infinity: its loss is not finite after a step or two."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, classes)

    def forward(self, x):
        return self.linear(x.flatten(1) * 1e18) ** 3


def explodes(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return _Explodes(int(torch.tensor(input_shape).prod()), num_classes)


def _clean(x: torch.Tensor, y: torch.Tensor) -> ClientData:
    return ClientData(TensorDataset(x, y), None)


def one_has_nan(client_id: str, num_clients: int) -> ClientData:
    """client-1's examples are not numbers; the others' are."""
    rng = torch.Generator().manual_seed(7)
    x, y = torch.randn(60, 4, generator=rng), torch.arange(60) % 2
    return _clean(x * torch.nan if client_id == "client-1" else x + y[:, None], y)


one_has_nan.input_shape = (4,)
one_has_nan.num_classes = 2


def one_has_none(client_id: str, num_clients: int) -> ClientData:
    """client-1's examples cannot be read."""
    if client_id == "client-1":
        raise RuntimeError("the file is on another machine " + "\x00" * 5000)
    return talks(client_id, num_clients)


def talks(client_id: str, num_clients: int) -> ClientData:
    """It prints."""
    print(f"{client_id} reads", flush=True)  # noqa: T201 - that is the trouble
    return _clean(torch.randn(20, 4), torch.arange(20) % 2)


one_has_none.input_shape = talks.input_shape = (4,)
one_has_none.num_classes = talks.num_classes = 2
