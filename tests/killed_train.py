"""Runs train.py as __main__, with a model of many random layers, and kills it with SIGKILL at a chosen moment.

python killed_train.py '{"kill": "save", "count": 2, "num_devices": 1}' <flags of train.py>

"kill" is what is being done at that moment, the "count"th time in this process: "steps" (some, about to begin), "save"
(the same), "rename" (of the index file of a checkpoint, whose data file is there already), "export" (written, not yet
renamed), or null. "pause" stops the process for 11 seconds instead, when steps are about to begin.
"""

import json
import os
import runpy
import signal
import subprocess
import sys

if __package__ in (None, ""):
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    import cats_vs_dogs  # noqa: F401

import keras
import tensorflow as tf

from cats_vs_dogs import batch_norm, checkpoints, cvd_models, files, models, trainer

plan = json.loads(sys.argv.pop(1))


class NoisyModel(models.BaseModel):
    def create_model(self, model_input):
        net = keras.layers.RandomFlip("horizontal")(model_input)
        net = keras.layers.RandomTranslation(0.1, 0.1)(net)
        net = keras.layers.Conv2D(8, 3, strides=2, use_bias=False)(net)
        net = keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=0.8)(net))
        net = keras.layers.Dropout(0.4)(keras.layers.GlobalAveragePooling2D()(net))
        return {"predictions": keras.layers.Dense(1, activation="sigmoid")(net)}


class FrozenModel(models.BaseModel):
    def create_model(self, model_input, rate=0.4):
        net = keras.layers.Conv2D(8, 3, strides=2, trainable=False)(model_input)
        features = keras.layers.GlobalAveragePooling2D()(net)
        net = keras.layers.Dropout(rate)(keras.layers.Dense(8, "relu")(features))
        return {"predictions": keras.layers.Dense(1, activation="sigmoid")(net), "features": features}


class NormModel(models.BaseModel):
    """Has batch norm, but nothing random, so that several devices give what one gives."""

    def create_model(self, model_input):
        net = keras.layers.Conv2D(4, 3, strides=2, use_bias=False, kernel_regularizer=keras.regularizers.L2(1e-4))(
            model_input
        )
        net = keras.layers.ReLU()(batch_norm.FastBatchNormalization(momentum=0.8)(net))
        net = keras.layers.GlobalAveragePooling2D()(net)
        return {"predictions": keras.layers.Dense(1, activation="sigmoid")(net)}


class OtherModel(models.BaseModel):
    """On each machine another model."""

    def create_model(self, model_input):
        net = keras.layers.Dense(int(os.environ["UNITS"]))(keras.layers.Flatten()(model_input))
        return {"predictions": keras.layers.Dense(1, activation="sigmoid")(net)}


cvd_models.NoisyModel = NoisyModel
cvd_models.NormModel = NormModel
cvd_models.OtherModel = OtherModel
cvd_models.FrozenModel = FrozenModel


def kill_when_called(owner, name, is_meant=lambda *args: True, after=False):
    original = getattr(owner, name)
    calls = 0

    def replacement(*args, **kwargs):
        nonlocal calls
        calls += is_meant(*args)
        is_due = is_meant(*args) and calls == plan["count"]
        if is_due and after:
            original(*args, **kwargs)
        if is_due and plan["kill"] == "pause":
            subprocess.Popen(["bash", "-c", f"sleep 11; kill -CONT {os.getpid()}"])
            os.kill(os.getpid(), signal.SIGSTOP)
        elif is_due:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, name, replacement)


if plan["kill"] in ("steps", "pause"):
    kill_when_called(trainer.Trainer, "run_steps")
elif plan["kill"] == "save":
    kill_when_called(checkpoints.TrainState, "save")
elif plan["kill"] == "rename":
    kill_when_called(files, "replace", lambda *args: args[1].endswith(".index") and "best" not in args[1])
elif plan["kill"] == "export":
    kill_when_called(tf.saved_model, "save", after=True)

if plan["num_devices"] > 1:
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * plan["num_devices"])

runpy.run_module("cats_vs_dogs.train", run_name="__main__", alter_sys=True)
