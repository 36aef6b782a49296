"""On which devices the model trains, and how batches get there."""

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


def distribute(strategy: tf.distribute.Strategy, batches: tf.data.Dataset) -> tf.data.Dataset:
    """Splits global batches over the replicas of a strategy, and brings them to a GPU before they are asked for."""
    if strategy.num_replicas_in_sync > 1:
        return strategy.experimental_distribute_dataset(batches)  # Prefetches to its devices by itself.
    gpus = tf.config.list_logical_devices("GPU")
    return batches.apply(tf.data.experimental.prefetch_to_device(gpus[0].name)) if gpus else batches
