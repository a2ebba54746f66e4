"""How good is a model on a data set? The same question for clients and coordinator.

Shapes: x float32[n, ...], y int64[n].   Not here: what happens to the answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from common.datasets import Data

BATCH = 1024  # examples at once when nothing has to be remembered for gradients


@dataclass(frozen=True, slots=True)
class Scores:
    """What a model reached on examples that it was not trained on."""

    loss: float  # mean cross-entropy
    accuracy: float  # 0 to 1
    examples: int


def evaluate(
    module: torch.nn.Module, dataset: Data, device: str | torch.device = "cpu", batch: int = BATCH
) -> Scores:
    """Score a module, which is on `device`; it is left in the mode it was in."""
    import torch
    from torch.nn import functional

    was_training = module.training
    module.eval()
    loss = torch.zeros((), dtype=torch.float64)
    hits = examples = 0
    with torch.inference_mode():
        for x, y in batches(dataset, torch.arange(size_of(dataset)), batch):
            logits = module(x.to(device))  # [batch, num_classes]
            truth = y.to(device)
            loss += functional.cross_entropy(logits, truth, reduction="sum").cpu()
            hits += int((logits.argmax(1) == truth).sum())
            examples += len(truth)
    module.train(was_training)
    return Scores(float(loss) / max(examples, 1), hits / max(examples, 1), examples)


def batches(dataset: Data, order: torch.Tensor, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Go through a data set in an order, by batches.

    Tensors are indexed with whole slices of the order: to pick and collate single examples, as a DataLoader
    does, takes longer than the training of a small model.
    """
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    if isinstance(dataset, TensorDataset):
        x, y = dataset.tensors
        for part in torch.split(order.to(x.device), size):
            yield x[part], y[part]
    else:
        yield from DataLoader(dataset, batch_size=size, sampler=order.tolist())


def size_of(dataset: Data) -> int:
    """Count the examples; torch's Dataset does not promise a length, ours have one."""
    return len(dataset)  # type: ignore[arg-type]  # see above


def device_of(name: str) -> torch.device:
    """Choose where to compute; auto is the fastest that is here."""
    import torch

    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
