import math

import pytest
import torch
from torch.utils.data import TensorDataset

from common import models
from common.evaluation import Scores, batches, evaluate
from support.labs import Pairs

DATA = TensorDataset(torch.rand(25, 1, 8, 8), torch.arange(25) % 10)


@pytest.mark.parametrize("dataset", [DATA, Pairs(DATA)], ids=["tensors", "pairs"])
def test_a_model_that_knows_nothing_scores_by_chance(dataset):
    module = models.build("linear", (1, 8, 8), 10)
    module.load_state_dict({name: torch.zeros_like(w) for name, w in module.state_dict().items()})
    scores = evaluate(module, dataset, batch=4)  # equal logits: the first class is chosen
    assert scores == Scores(loss=pytest.approx(math.log(10), rel=1e-6), accuracy=3 / 25, examples=25)


def test_the_batch_size_changes_nothing():
    module = models.build("mlp", (1, 8, 8), 10)
    one, all_at_once = evaluate(module, DATA, batch=1), evaluate(module, DATA, batch=100)
    assert one.loss == pytest.approx(all_at_once.loss, rel=1e-6)
    assert one.accuracy == all_at_once.accuracy


def test_nothing_is_learned_and_the_mode_stays():
    module = models.build("support.labs:normed", (1, 8, 8), 10).train()
    before = models.get_flat(module)
    assert evaluate(module, DATA) == evaluate(module, DATA)
    assert module.training
    assert models.get_flat(module).tobytes() == before.tobytes()
    evaluate(module.eval(), DATA)
    assert not module.training


def test_no_examples_are_no_score():
    assert evaluate(
        models.build("linear", (2,), 3), TensorDataset(torch.ones(0, 2), torch.zeros(0, dtype=torch.int64))
    ) == Scores(0, 0, 0)


@pytest.mark.parametrize("dataset", [DATA, Pairs(DATA)], ids=["tensors", "pairs"])
def test_batches_follow_the_order(dataset):
    order = torch.randperm(25, generator=torch.Generator().manual_seed(0))
    got = list(batches(dataset, order, 10))
    assert [len(y) for _, y in got] == [10, 10, 5]
    assert torch.equal(torch.cat([y for _, y in got]), DATA.tensors[1][order])
    assert torch.equal(torch.cat([x for x, _ in got]), DATA.tensors[0][order])
