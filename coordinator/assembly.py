"""Puts a coordinator together from settings, and runs it."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from common import datasets, evaluation, files, models, parts, stopping
from common.errors import ConfigError
from common.evaluation import Scores
from common.identity import Role
from common.ids import COORDINATOR
from common.messages import Plan
from common.settings import Settings
from common.tensors import Vector
from coordinator import strategies
from coordinator.buffer import BufferPolicy
from coordinator.model import GlobalModel
from coordinator.run import EndRun, Late, RunPolicy
from coordinator.service import Coordinator, Policy, Report

if TYPE_CHECKING:
    import torch


async def serve(settings: Settings, *, hold: bool, report: Report) -> EndRun | None:
    """Run a coordinator until its run is over or it is told to stop.

    Raises: FedmqError with what the operator can do about it.
    """
    with files.held(parts.state_dir(settings, Role.COORDINATOR, COORDINATOR)):
        coordinator = assembled(settings, hold=hold, report=report)
        stopping.on_signals(
            gently=lambda: coordinator.leave(now=False), at_once=lambda: coordinator.leave(now=True)
        )
        return await coordinator.serve()


def assembled(settings: Settings, *, hold: bool, report: Report) -> Coordinator:
    """Make the coordinator, nothing connected yet."""
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    strategy = strategies.resolve(settings.run.effective_strategy)
    spec = parts.data_spec(settings)
    shape, classes = datasets.describe(spec)
    module = models.build(settings.model.name, shape, classes, seed=settings.seed, **settings.model.options)
    ours = parts.assemble(settings, Role.COORDINATOR, COORDINATOR)
    return Coordinator(
        _policy(settings, hold=hold),
        ours,
        model=GlobalModel(models.schema_of(module), models.get_flat(module), strategy, ours.store),
        evaluate=_evaluator(module, spec, settings.training.device),
        report=report,
    )


def _evaluator(
    module: "torch.nn.Module", spec: datasets.DataSpec, device: str
) -> Callable[[Vector], Scores] | None:
    """Make the central evaluation, where there are examples that belong to no client."""
    test = datasets.test_data(spec)
    if test is None:
        return None

    place = evaluation.device_of(device)
    module.to(place)

    def evaluate(vector: Vector) -> Scores:
        models.set_flat(module, vector)
        return evaluation.evaluate(module, test, place)

    return evaluate


def run_policy(settings: Settings) -> RunPolicy:
    """Say how a run goes."""
    run = settings.run
    return RunPolicy(
        seed=settings.seed,
        wait_for=run.wait_for_clients or settings.data.num_clients,
        cohort_size=run.cohort_size,
        quorum_share=run.quorum_share,
        patience=run.patience,
        first_deadline_s=run.first_round_s,
        late=Late(run.late),
    )


def buffer_policy(settings: Settings) -> BufferPolicy | None:
    """Say when updates are merged in the buffered mode; None: rounds are synchronous.

    Raises: ConfigError where the least is above the size that follows from the clients.
    """
    run = settings.run
    if run.mode == "sync":
        return None
    clients = run.wait_for_clients or settings.data.num_clients
    size = run.buffer_size or -(-clients // 2)
    if run.buffer_min > size:
        raise ConfigError(
            f"run.buffer_min is {run.buffer_min}, but {size} updates are merged: see run.buffer_size"
        )
    return BufferPolicy(size, run.buffer_min, run.buffer_per_client)


def _policy(settings: Settings, *, hold: bool) -> Policy:
    run, training = settings.run, settings.training
    return Policy(
        run=run_policy(settings),
        rounds=run.num_rounds,
        plan=Plan(
            epochs=training.local_epochs,
            batch_size=training.batch_size,
            lr=training.lr,
            optimizer=training.optimizer,
            momentum=training.momentum,
            weight_decay=training.weight_decay,
            seed=settings.seed,
        ),
        codec=run.codec,
        hold=hold,
        config=parts.shown(settings),
    )
