import importlib.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from common import datasets
from common.datasets import ClientData, DataSpec, client_data, describe
from common.errors import ConfigError, UsageError
from support.idx import LABELS, PIXELS, put_idx
from support.labs import Pairs

DIGITS = DataSpec("digits")
SYNTHETIC = DataSpec("synthetic", options={"shape": [2, 3], "classes": 4, "examples": 100})


def rows(data: ClientData) -> list[bytes]:
    """Name each of a client's examples by its bytes."""
    halves = [half.tensors for half in (data.train, data.test) if half]
    x, y = (torch.cat(both) for both in zip(*halves, strict=True))
    return [image.numpy().tobytes() + bytes([label]) for image, label in zip(x, y, strict=True)]


def test_names_cost_no_torch(pytestconfig):
    code = (
        "import sys, common.datasets, common.models, common.evaluation, common.partition, common.compression\n"
        "import coordinator.strategies, coordinator.screening\n"
        "assert not {'torch', 'torchvision', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=pytestconfig.rootpath)


def test_digits_are_1797_and_the_fifth_part_is_for_the_test():
    test = datasets.test_data(DIGITS)
    x, y = test.tensors
    parts = [client_data(replace(DIGITS, test_share=0), k, 3, f"c{k}") for k in range(3)]
    assert len(test) + sum(len(part.train) for part in parts) == 1797
    assert x.shape[1:] == (1, 8, 8)
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    assert (float(x.min()), float(x.max())) == (0, 1)
    assert set(torch.bincount(y).tolist()) <= {34, 35, 36}
    assert describe(DIGITS) == ((1, 8, 8), 10)


def test_digits_are_the_same_read_from_the_file_or_by_scikit_learn(tmp_path):
    package = Path(importlib.util.find_spec("sklearn").origin).parent
    table = datasets.read_digits(package / "datasets/data/digits.csv.gz")
    assert table.shape == (1797, 65)
    assert np.array_equal(table, datasets.read_digits(tmp_path / "moved"))


@pytest.mark.parametrize("scheme", ["dirichlet", "iid", "shards", "quantity", "classes"])
def test_clients_share_the_training_half_out_and_nothing_else(scheme):
    spec = replace(SYNTHETIC, scheme=scheme)
    mine = [row for k in range(5) for row in rows(client_data(spec, k, 5, f"c{k}"))]
    whole = rows(client_data(SYNTHETIC, 0, 1, "all"))
    assert sorted(mine) == sorted(whole)
    x, y = datasets.test_data(spec).tensors
    assert len(whole) == 100
    assert not {image.numpy().tobytes() + bytes([label]) for image, label in zip(x, y, strict=True)} & set(
        whole
    )


def test_a_client_holds_a_tenth_of_its_part_out():
    data = client_data(SYNTHETIC, 0, 1, "c")
    assert (len(data.train), len(data.test)) == (90, 10)
    lone = client_data(replace(SYNTHETIC, test_share=0.9), 7, 100, "c")
    assert len(lone.train) == 1
    assert lone.test is None


def test_the_same_spec_deals_the_same_and_another_seed_does_not():
    first, again, other = (rows(client_data(replace(SYNTHETIC, seed=seed), 1, 3, "c")) for seed in (1, 1, 2))
    assert first == again
    assert sorted(first) != sorted(other)


def test_a_cap_takes_some_of_each_class():
    data = client_data(replace(SYNTHETIC, scheme="iid", max_examples=40, test_share=0), 0, 1, "c")
    assert len(data.train) == 40
    assert len(data.train.tensors[1].unique()) == 4


def test_files_become_images_between_0_and_1(tmp_path):
    put_idx(tmp_path)
    spec = DataSpec("mnist", tmp_path)
    x, y = datasets.test_data(spec).tensors
    assert torch.equal(x, torch.from_numpy(PIXELS[:, None].astype(np.float32)) / 255)
    assert y.tolist() == LABELS.tolist()
    assert describe(spec) == ((1, 28, 28), 10)


def test_synthetic_classes_can_be_told_apart():
    spec = DataSpec("synthetic(shape=(16,), classes=3, noise=0.5)")
    assert describe(spec) == ((16,), 3)
    x, y = client_data(replace(spec, test_share=0), 0, 1, "c").train.tensors
    centres = torch.stack([x[y == label].mean(0) for label in range(3)])
    test_x, test_y = datasets.test_data(spec).tensors
    assert (torch.cdist(test_x, centres).argmin(1) == test_y).float().mean() > 0.95


def test_warming_reads_what_clients_then_share():
    spec = replace(SYNTHETIC, seed=77)
    datasets.warm(spec, 2)
    shared = (datasets._split, datasets._parts)
    misses = [one.cache_info().misses for one in shared]
    client_data(spec, 0, 2, "c")
    assert [one.cache_info().misses for one in shared] == misses


def test_a_plug_in_is_told_who_asks():
    spec = DataSpec("support.labs:ward", options={"patients": 4})
    data = client_data(spec, 8, 12, "ward-9")
    assert data.train.tensors[0].tolist() == [[12.0, 12.0]] * 4
    assert describe(spec, data) == ((2,), 4)
    assert datasets.test_data(spec) is None
    datasets.warm(spec, 12)
    with pytest.raises(ConfigError, match="input_shape"):
        describe(spec)


def test_a_plug_in_may_say_its_shape_and_bring_a_test_set():
    spec = DataSpec("support.labs:told(patients=9)")
    assert describe(spec) == ((2,), 5)
    assert len(datasets.test_data(spec)) == 9


def test_shape_and_classes_are_read_off_any_kind_of_data_set():
    data = client_data(SYNTHETIC, 0, 1, "c")
    assert describe(DataSpec("support.labs:ward"), ClientData(Pairs(data.train), None)) == ((2, 3), 4)


@pytest.mark.parametrize(
    ("spec", "error", "why"),
    [
        (DataSpec("imagenet"), UsageError, "cifar10, digits, fashion-mnist, mnist, synthetic"),
        (DataSpec("support.labs:NUMBER"), UsageError, "not a function"),
        (DataSpec("support.labs:not_data"), UsageError, "returned a int"),
        (DataSpec("support.labs:ward(beds=1)"), ConfigError, "patients"),
        (DataSpec("digits(size=3)"), ConfigError, "none"),
        (DataSpec("mnist", options={"size": 3}), ConfigError, "none"),
        (DataSpec("synthetic(classes=0)"), ConfigError, "above 0"),
        (replace(DIGITS, test_share=1.0), ConfigError, "test_share"),
        (replace(DIGITS, scheme="halves"), UsageError, "classes, dirichlet, iid"),
        (replace(DIGITS, scheme="dirichlet(alpha=0)"), ConfigError, "alpha"),
        (replace(DIGITS, scheme="natural"), ConfigError, "does not say whose example"),
        (DataSpec("support.labs:pool(owners=False)", scheme="natural"), ConfigError, "whose example"),
        (DataSpec("support.labs:pool(labels=False)"), ConfigError, "no integer labels"),
        (DataSpec("support.labs:pool(labels=[1,2])"), UsageError, "300 examples, and other numbers"),
        (DataSpec(f"support.labs:pool(labels={[0.5] * 300})"), UsageError, "labels that are no integers"),
        (replace(DIGITS, max_examples=0), ConfigError, "max_examples"),
    ],
)
def test_what_cannot_be_is_said(spec, error, why):
    with pytest.raises(error, match=why):
        client_data(spec, 0, 3, "c")


def test_a_plug_in_may_leave_the_dealing_to_us():
    spec = DataSpec("support.labs:pool", scheme="natural", test_share=0)
    parts = [client_data(spec, k, 3, f"c{k}").train.tensors[0][:, 0] for k in range(3)]
    assert sorted(torch.cat(parts).tolist()) == list(range(300))
    writers = [set((part // 50).tolist()) for part in parts]
    assert [len(has) for has in writers] == [2, 2, 2]  # of six writers
    assert describe(spec, client_data(spec, 0, 3, "c")) == ((1,), 4)


@pytest.mark.parametrize("scheme", ["iid", "classes(k=2)"])
def test_a_pool_of_any_kind_is_dealt_and_cut_as_a_built_in_data_set_is(scheme):
    spec = DataSpec("support.labs:pool", scheme=scheme, max_examples=40)
    held = [client_data(spec, 2, 6, "c")]
    held.append(client_data(replace(spec, name="support.labs:pool(tensors=False)"), 2, 6, "c"))
    (train, test), other = ([[float(x) for x, _ in half] for half in (one.train, one.test)] for one in held)
    assert (len(train), len(test)) == (36, 4)
    assert [train, test] == other
    assert len({value % 4 for value in train}) == (4 if scheme == "iid" else 2)


def test_a_pool_without_labels_can_be_dealt_out_too():
    spec = DataSpec("support.labs:pool(labels=False)", scheme="quantity")
    assert sum(len(client_data(replace(spec, test_share=0), k, 3, "c").train) for k in range(3)) == 300


@pytest.mark.parametrize("index", [-1, 3])
def test_there_are_only_so_many_clients(index):
    with pytest.raises(ConfigError, match="no part"):
        client_data(DIGITS, index, 3, "c")
