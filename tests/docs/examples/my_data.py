"""A data set of one's own: 569 tumours, 30 measurements each, malignant or benign (UCI, in scikit-learn)."""

import torch
from sklearn.datasets import load_breast_cancer
from torch.utils.data import TensorDataset

from common.datasets import ClientData


def load(client_id: str, num_clients: int, held_out: int = 10) -> ClientData:
    """Give one client what it holds. Here this is every n-th example; a client of yours reads its own files."""
    part = int(client_id.rpartition("-")[2]) - 1  # of client-1, client-2, ...
    x, y = _examples()
    x, y = x[part::num_clients], y[part::num_clients]
    return ClientData(
        train=TensorDataset(x[held_out:], y[held_out:]),
        test=TensorDataset(x[:held_out], y[:held_out]),  # for this client's own scores; None for none
    )


def test(**options: object) -> TensorDataset:
    """Give the coordinator what it tests each round's model on. Leave it out, and only clients test."""
    x, y = _examples(test=True)
    return TensorDataset(x, y)


load.input_shape = (30,)  # of one x
load.num_classes = 2
load.test = test


def _examples(*, test: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Split the file: every fifth example is for the coordinator."""
    x, y = load_breast_cancer(return_X_y=True)
    x, y = torch.tensor(x, dtype=torch.float32).add(1e-3).log(), torch.tensor(y)  # float32[n, 30], int64[n]
    chosen = (torch.arange(len(y)) % 5 == 0) == test
    return x[chosen], y[chosen]
