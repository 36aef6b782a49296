"""Picks the distribution strategy: on which devices the model trains."""

import tensorflow as tf
from absl import logging


def make_strategy() -> tf.distribute.Strategy:
    """Returns a strategy for the devices of this machine: all GPUs if there are several, else the one device."""
    gpus = tf.config.list_logical_devices("GPU")
    if gpus:
        logging.info("Using the following GPUs to train: %s", [gpu.name for gpu in gpus])
    else:
        logging.info("No GPUs found. Training on CPU.")
    return tf.distribute.MirroredStrategy() if len(gpus) > 1 else tf.distribute.get_strategy()
