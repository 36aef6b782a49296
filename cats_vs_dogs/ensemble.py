"""Several models that predict together, as an ensemble: each photo gets the mean of their probabilities.

eval.py and inference.py use it for one model, too.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging

from cats_vs_dogs import checkpoints, files, open_reader, train_dir
from cats_vs_dogs.classifier import Classifier
from cats_vs_dogs.config import ModelSpec
from cats_vs_dogs.distribution import Cluster
from cats_vs_dogs.readers import BaseReader, ReaderForModels


def load_specs(train_dirs: Sequence[str]) -> list[ModelSpec]:
    """Returns what is needed to build the model of each train_dir.

    Raises:
        UserError: if one holds no model, or its model cannot be built with the present classes.
    """
    return [train_dir.load_spec(one) for one in train_dirs]


def open_reader_for(specs: Sequence[ModelSpec], is_labelled: bool) -> BaseReader:
    """Returns the reader of a model, or for several models one reader that returns the images of each.

    Models with the same image_size and resize_method share their images, so a photo is decoded once per size.

    Args:
        specs: the models.
        is_labelled: whether the reader must return labels.

    Raises:
        UserError: see `open_reader.open_reader`.
    """
    kinds = [(spec.image_size, spec.resize_method) for spec in specs]
    readers = {kind: open_reader.open_reader(is_labelled, *kind) for kind in dict.fromkeys(kinds)}
    if len(specs) == 1:
        return readers[kinds[0]]
    return ReaderForModels(list(readers.values()), [list(readers).index(kind) for kind in kinds])


def build(specs: Sequence[ModelSpec], cluster: Cluster, averages: dict[str, bool]) -> list[Classifier]:
    """Builds models on the devices of a cluster. Their weights will be restored.

    Args:
        specs: the models.
        cluster: the devices.
        averages: a bool for each of config.AVERAGES, see `Classifier`.

    Raises:
        UserError: see `Classifier`.
    """
    with cluster.strategy.scope():
        return [Classifier(spec, **averages) for spec in specs]


def restore(classifiers: Sequence[Classifier], train_dirs: Sequence[str]) -> list[dict[str, Any]]:
    """Restores each model from its newest checkpoint, and warns if two have the same weights.

    Returns:
        "train_dir" and "step" of each model, for the metrics.

    Raises:
        UserError: see `checkpoints.restore_newest`.
    """
    restored = []
    for classifier, folder in zip(classifiers, train_dirs, strict=True):
        path = checkpoints.restore_newest(classifier, folder)
        logging.info("restoring variables from %s", path)
        restored.append({"train_dir": files.absolute_path(folder), "step": checkpoints.step_of(path)})
    for (one, folder), (other, other_folder) in itertools.combinations(zip(classifiers, train_dirs, strict=True), 2):
        if _are_equal(one, other):
            logging.warning(
                "%s and %s hold the same model with the same weights, so it counts twice in the mean; leave one out",
                *(folder, other_folder),
            )
    return restored


def _are_equal(one: Classifier, other: Classifier) -> bool:
    weights, others = one.model.weights, other.model.weights
    if one.spec.model != other.spec.model or len(weights) != len(others):
        return False
    return all(np.array_equal(weight, value) for weight, value in zip(weights, others, strict=True))
