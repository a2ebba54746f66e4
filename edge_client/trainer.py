"""Local training: from a base and a plan to a delta.

    base float32[d] -> module -> epochs of SGD over the client's own examples -> trained - base, float32[d]

Source: McMahan et al. 2017, Algorithm 1, ClientUpdate (arXiv:1602.05629).
Laws:   1. Same base, plan and data: same delta, on one machine with one number of threads. 2. A delta is
        finite. 3. Nothing of one round stays for the next: optimizers start anew.
Not here: when to train (`session`), what the delta becomes on its way (`common.compression`).
"""

from __future__ import annotations

import math
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from common import models
from common.errors import FedmqError
from common.evaluation import Scores, batches, device_of, evaluate, size_of
from edge_client.optimizers import make_optimizer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch

    from common.datasets import ClientData, Data
    from common.messages import Plan
    from common.tensors import Schema, Vector


class DivergedError(FedmqError):
    """Use a smaller learning rate (--lr), or look at the client's data: values far from 1 need scaling."""


@dataclass(frozen=True, slots=True)
class Trained:
    """What one training brought."""

    delta: Vector  # trained - base
    examples: int
    steps: int
    loss: float  # mean over the examples of the last epoch
    seconds: float  # of training alone
    local: Scores | None  # of the base on the client's held-out examples


class Trainer(Protocol):
    """Whatever can follow a plan: a module here, or a whole federation behind a site."""

    @property
    def schema(self) -> Schema:
        """Say which tensors it trains."""
        ...

    @property
    def examples(self) -> int:
        """Count what it trains on."""
        ...

    def train(self, base: Vector, plan: Plan) -> Trained:
        """Train; blocks for as long as it takes. Raises: DivergedError, ConfigError."""
        ...


class TorchTrainer:
    """Trains a torch module on tensors, or on any torch data set of pairs."""

    def __init__(
        self, module: torch.nn.Module, data: ClientData, device: str = "auto", *, bfloat16: bool | None = None
    ) -> None:
        """Take a module over: it moves to the device, and its weights are this trainer's from now on.

        `bfloat16` is for the activations (weights and their sums stay float32); None: where it pays.
        """
        self.schema = models.schema_of(module)
        self.examples = size_of(data.train)
        self.device = device_of(device)
        self._module = module.to(self.device)
        self._train = _resident(data.train, self.device)
        self._held_out = None if data.test is None else _resident(data.test, self.device)
        self._bfloat16 = gains_from_bfloat16(module, self.device) if bfloat16 is None else bfloat16
        if gains_from_channels_last(module):
            import torch

            module.to(memory_format=torch.channels_last)

    def train(self, base: Vector, plan: Plan) -> Trained:
        """Follow a plan from a base. Raises: DivergedError, ConfigError."""
        models.set_flat(self._module, base)
        local = None if self._held_out is None else evaluate(self._module, self._held_out, self.device)
        if local is not None and not math.isfinite(local.loss):
            raise DivergedError("the loss of the base on this client's held-out examples is not finite")
        started = time.perf_counter()
        with _chance(plan.seed, self.device):
            loss, steps = self._fit(plan)
        delta = models.get_flat(self._module)
        delta -= base
        seconds = time.perf_counter() - started
        if not np.isfinite(delta).all():
            raise DivergedError(f"weights became NaN or infinite in {steps} steps")
        return Trained(delta, self.examples, steps, loss, seconds, local)

    def _fit(self, plan: Plan) -> tuple[float, int]:
        """Run the epochs; returns the mean loss of the last one, and the number of steps."""
        import torch
        from torch.nn import functional

        optimizer = make_optimizer(self._module.parameters(), plan)
        shuffle = torch.Generator().manual_seed(plan.seed)
        mean_loss, steps = math.nan, 0
        self._module.train()
        for epoch in range(plan.epochs):
            total = torch.zeros((), device=self.device)  # read once an epoch: each read waits for the device
            order = torch.randperm(self.examples, generator=shuffle)
            for x, y in batches(self._train, order, plan.batch_size):
                truth = y.to(self.device)  # [batch]
                self._module.zero_grad()
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bfloat16):
                    logits = self._module(x.to(self.device))  # [batch, num_classes]
                    loss = functional.cross_entropy(logits, truth)
                loss.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
                optimizer.step()
                total += loss.detach() * len(truth)
                steps += 1
            mean_loss = float(total) / self.examples
            if not math.isfinite(mean_loss):
                raise DivergedError(f"the loss became NaN or infinite in epoch {epoch + 1}")
        return mean_loss, steps


# Measured on an AMD EPYC with AVX-512, one thread, batches of 32, ms a step:
#                            float32   channels_last   bfloat16   both
#   cnn, 28 x 28               30           27            22       16
#   cnn, 3 x 32 x 32           41           37            30       24
#   resnet18, 3 x 32 x 32    1090         1120           570      760     for its group normalisation
#   mlp, 28 x 28              1.2          0.9           1.2      1.2     for want of convolutions


def gains_from_bfloat16(module: torch.nn.Module, device: torch.device) -> bool:
    """Tell whether a module's convolutions are faster in bfloat16 there; emulated, they are far slower."""
    import torch

    if not _has(module, torch.nn.Conv2d):
        return False
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # newer than 2.10
    return device.type == "cpu" and bool(capabilities.get("avx512_bf16"))


def gains_from_channels_last(module: torch.nn.Module) -> bool:
    """Tell whether a module's convolutions should keep the channels of a pixel together."""
    from torch import nn

    return _has(module, nn.Conv2d) and not _has(module, nn.GroupNorm)


def _has(module: torch.nn.Module, kind: type[torch.nn.Module]) -> bool:
    return any(isinstance(part, kind) for part in module.modules())


def _resident(data: Data, device: torch.device) -> Data:
    """Keep tensors where they will be used: one copy, instead of one for each batch."""
    from torch.utils.data import TensorDataset

    if isinstance(data, TensorDataset):
        return TensorDataset(*(tensor.to(device) for tensor in data.tensors))
    return data


@contextmanager
def _chance(seed: int, device: torch.device) -> Iterator[None]:
    """Let dropout and the like follow the plan's seed, on the device too."""
    import torch

    with models.seeded(seed):
        if device.type != "cpu":
            torch.manual_seed(seed)
        yield
