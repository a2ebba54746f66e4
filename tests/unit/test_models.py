import numpy as np
import pytest
import torch

from common import models
from common.errors import ConfigError, UsageError
from common.models import build, get_flat, schema_of, set_flat

DIGIT = (1, 8, 8)


@pytest.mark.parametrize(
    ("name", "shape", "elements"),
    [
        ("linear", (1, 28, 28), 7_850),
        ("mlp", (1, 28, 28), 199_210),
        ("cnn", (1, 28, 28), 1_663_370),
        ("resnet18", (3, 32, 32), 11_173_962),
    ],
)
def test_sizes_are_those_of_the_papers(name, shape, elements):
    assert schema_of(build(name, shape, 10)).elements == elements


@pytest.mark.parametrize("name", models.MODELS)
@pytest.mark.parametrize("shape", [DIGIT, (1, 28, 28), (3, 32, 32)])
def test_every_model_takes_every_image_size(name, shape):
    assert build(name, shape, 7)(torch.zeros(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize("name", [*models.MODELS, "support.labs:normed"])
def test_one_vector_holds_all_that_travels(name):
    module, other = build(name, DIGIT, 10, seed=1), build(name, DIGIT, 10, seed=2)
    vector = get_flat(module)
    assert vector.dtype == np.float32
    assert vector.shape == (schema_of(module).elements,)
    set_flat(other, vector)
    assert get_flat(other).tobytes() == vector.tobytes()
    x = torch.rand(3, *DIGIT)
    assert torch.equal(module.eval()(x), other.eval()(x))


def test_the_vector_is_in_the_order_of_the_schema():
    module = build("mlp(hidden=(3,))", DIGIT, 2)
    vector = get_flat(module)
    for spec, tensor in zip(schema_of(module).tensors, module.state_dict().values(), strict=True):
        part, vector = vector[: spec.elements], vector[spec.elements :]
        assert part.tobytes() == tensor.numpy().tobytes()
    assert vector.size == 0


def test_buffers_travel_and_counters_do_not():
    names = [tensor.name for tensor in schema_of(build("support.labs:normed", DIGIT, 10)).tensors]
    assert "2.running_mean" in names
    assert "2.num_batches_tracked" not in names


def test_half_precision_and_other_memory_layouts_travel_as_float32():
    module = build("cnn", DIGIT, 10).to(torch.bfloat16, memory_format=torch.channels_last)
    assert {tensor.dtype for tensor in schema_of(module).tensors} == {"bfloat16"}
    vector = get_flat(module)
    set_flat(module, vector)
    assert get_flat(module).tobytes() == vector.tobytes()


def test_a_read_only_vector_can_be_set():
    module = build("linear", DIGIT, 10)
    ones = np.frombuffer(np.ones(650, np.float32).tobytes(), np.float32)
    set_flat(module, ones)
    assert np.all(get_flat(module) == 1)


def test_the_seed_decides_and_nobody_else_is_disturbed():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, again, other = (get_flat(build("mlp", DIGIT, 10, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.tobytes() == again.tobytes() != other.tobytes()


@pytest.mark.parametrize("wrong", [np.ones(649, np.float32), np.ones((65, 10), np.float32)])
def test_a_vector_that_does_not_fit_is_refused(wrong):
    with pytest.raises(ConfigError, match="does not fit"):
        set_flat(build("linear", DIGIT, 10), wrong)


def test_names_and_options_are_checked():
    with pytest.raises(UsageError, match="cnn, linear, mlp, resnet18"):
        build("transformer", DIGIT, 10)
    with pytest.raises(UsageError, match="made a int"):
        build("support.labs:not_a_module", DIGIT, 10)
    with pytest.raises(UsageError, match="not a function"):
        build("support.labs:NUMBER", DIGIT, 10)
    with pytest.raises(ConfigError, match="hidden"):
        build("mlp", DIGIT, 10, depth=3)
    with pytest.raises(ConfigError, match="too small"):
        build("cnn", (1, 3, 9), 10)
    for name in ("cnn", "resnet18"):
        with pytest.raises(ConfigError, match="images"):
            build(name, (9,), 10)
    with pytest.raises(ConfigError, match="cannot travel"):
        schema_of(build("support.labs:counters", DIGIT, 10))


def test_options_come_with_the_name_or_beside_it():
    assert schema_of(build("mlp(hidden=(5,))", DIGIT, 10)) == schema_of(build("mlp", DIGIT, 10, hidden=[5]))
