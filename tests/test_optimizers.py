"""Optimizers by name, their configurations, and learning rate schedules."""

import inspect
import json
import re

import keras
import numpy as np
import pytest

from cats_vs_dogs import optimizers
from cats_vs_dogs.optimizers import LearningRate, configuration, make_optimizer
from cats_vs_dogs.utils import UserError


def variables():
    return [keras.Variable(np.ones(shape, np.float32)) for shape in ((2, 2), (2,))]


@pytest.mark.parametrize(
    ("name", "keras_name"),
    [
        ("AdamOptimizer", "Adam"),
        ("AdagradOptimizer", "Adagrad"),
        ("AdadeltaOptimizer", "Adadelta"),
        ("RMSPropOptimizer", "RMSprop"),
        ("GradientDescentOptimizer", "SGD"),
        ("MomentumOptimizer", "SGD"),
        ("FtrlOptimizer", "Ftrl"),
        ("AdamW", "AdamW"),
        ("SGD", "SGD"),
    ],
)
def test_names_of_2017_and_of_keras(name, keras_name):
    optimizer = make_optimizer(name, LearningRate(0.01, 512), variables())
    assert type(optimizer).__name__ == keras_name


def test_defaults_of_2017():
    assert make_optimizer("AdamOptimizer", LearningRate(0.01, 512), variables()).epsilon == 1e-8
    assert make_optimizer("MomentumOptimizer", LearningRate(0.01, 512), variables()).momentum == 0.9


def test_an_unknown_name_gets_a_suggestion():
    with pytest.raises(UserError, match="--optimizer=adamoptimiser: .* did you mean AdamOptimizer"):
        make_optimizer("adamoptimiser", LearningRate(0.01, 512), variables())


def test_weight_decay_leaves_biases_alone():
    kernel, bias = variables()
    params = {"weight_decay": 0.5}
    optimizer = make_optimizer("AdamW", LearningRate(0.1, 512, "constant"), [kernel, bias], params=params)
    optimizer.apply_gradients([(np.zeros((2, 2), np.float32), kernel), (np.zeros(2, np.float32), bias)])
    np.testing.assert_allclose(kernel, np.full((2, 2), 1 - 0.1 * 0.5), rtol=1e-6)
    np.testing.assert_array_equal(bias, [1, 1])
    assert make_optimizer("AdamOptimizer", LearningRate(0.1, 512), variables(), params={"epsilon": 0.5}).epsilon == 0.5


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"momentun": 0.9},
            '--optimizer_params: SGD has no parameter "momentun"; it takes: momentum, nesterov, weight_d',
        ),
        ({"learning_rate": 0.9}, '--optimizer_params: SGD has no parameter "learning_rate"'),  # It has a flag.
        ({"momentum": 2}, '--optimizer_params={"momentum": 2}: '),
        ({"weight_decay": "much"}, '--optimizer_params: "weight_decay" must be a number, true or false; got "much"'),
    ],
)
def test_wrong_parameters_get_one_line(params, message):
    with pytest.raises(UserError, match="^" + re.escape(message)):
        make_optimizer("SGD", LearningRate(0.01, 512), variables(), params=params)


def test_configuration_holds_what_decides_the_update():
    assert configuration("GradientDescentOptimizer", {}) == {
        "class": "SGD",
        "momentum": 0.0,
        "nesterov": False,
        "weight_decay": None,
    }
    adam = configuration("Adam", {})
    assert adam == {
        "class": "Adam",
        "beta_1": 0.9,
        "beta_2": 0.999,
        "epsilon": 1e-7,
        "amsgrad": False,
        "weight_decay": None,
    }
    assert configuration("AdamOptimizer", {}) == {**adam, "epsilon": 1e-8}


def test_equal_updates_have_equal_configurations():
    assert configuration("SGD", {"momentum": 0.9}) == configuration("MomentumOptimizer", {})
    assert configuration("AdamOptimizer", {"epsilon": 1e-7}) == configuration("Adam", {"beta_1": 0.9})
    assert configuration("Adam", {"weight_decay": 0.1}) != configuration("Adam", {})
    with pytest.raises(UserError, match='no parameter "momentun"'):
        configuration("SGD", {"momentun": 0.9})


@pytest.mark.parametrize("name", optimizers._available())
def test_configurations_are_json_and_name_every_parameter(name):
    config = configuration(name, {})
    assert json.loads(json.dumps(config)) == config
    optimizer_class, _ = optimizers._available()[name]
    accepted = set(inspect.signature(optimizer_class).parameters) - optimizers._SET_BY_THE_KIT
    assert accepted <= set(config)


def test_exponential_is_a_staircase_in_examples():
    rate = LearningRate(0.01, 32, "exponential", decay=0.5, decay_examples=320)
    steps = [0, 9, 10, 19, 20, 39, 40]
    expected = [0.01, 0.01, 0.005, 0.005, 0.0025, 0.00125, 0.000625]
    np.testing.assert_allclose([rate(step) for step in steps], expected, rtol=1e-6)


def test_cosine_goes_to_zero_and_constant_stays():
    cosine = LearningRate(1.0, 10, "cosine", total_steps=100)
    np.testing.assert_allclose([cosine(0), cosine(50), cosine(100), cosine(150)], [1, 0.5, 0, 0], atol=1e-7)
    assert float(LearningRate(0.3, 10, "constant", total_steps=100)(99)) == pytest.approx(0.3)


def test_warm_up_is_linear_and_never_zero():
    rate = LearningRate(1.0, 10, "constant", warmup_examples=50)
    np.testing.assert_allclose([rate(step) for step in range(6)], [0.2, 0.4, 0.6, 0.8, 1.0, 1.0], rtol=1e-6)
    cosine = LearningRate(1.0, 10, "cosine", warmup_examples=50, total_steps=105)
    np.testing.assert_allclose([cosine(5), cosine(55), cosine(105)], [1.0, 0.5, 0.0], atol=1e-7)
