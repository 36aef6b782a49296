"""The one loop that predicts: evaluation, evaluation while training, and inference run it."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from cats_vs_dogs import eval_util
from cats_vs_dogs.classifier import Classifier
from cats_vs_dogs.distribution import Cluster
from cats_vs_dogs.picture_files import PictureBatches

_PIXELS_AT_ONCE = 1024 * 64 * 64  # A network such as MobileNetV2 keeps up to 24 numbers per pixel.


@dataclasses.dataclass(frozen=True)
class PredictedBatch:
    """A batch and what one model says about it, or several as an ensemble.

    Attributes:
        ids: bytes [batch].
        images: the pictures as the reader returned them; for several models, the largest ones.
        probabilities: float32 [batch, 1], probability of a dog, in [0, 1]; for several models, their mean.
        by_model: float32 [models, batch, 1], the probabilities of each model.
        labels: int32 [batch, 1], 1 = dog; None if the examples are unlabelled.
        loss: the mean label loss of the batch; None if the examples are unlabelled, or for several models, which may
            have different losses.
    """

    ids: np.ndarray
    images: tf.Tensor
    probabilities: np.ndarray
    by_model: np.ndarray
    labels: np.ndarray | None = None
    loss: float | None = None


class Predictor:
    """Predicts the same dataset again and again, while the weights of the model may change.

    Args:
        classifiers: the model, or several as an ensemble; built in the scope of the cluster's strategy.
        cluster: the devices to predict on.
        batches: ids, images and, for labelled examples, labels. For several models, images are a tuple with those of
            each, see `readers.ReaderForModels`.
        num_examples: number of examples, for the progress bar. None: unknown.
        features: those of all examples, in order, float32 [n, ...]; a single model then runs on them, not on the
            pictures. None: it runs on the pictures.

    Attributes:
        graph: the TensorFlow graph with which the first model predicts a batch.
    """

    def __init__(
        self,
        classifiers: Classifier | Sequence[Classifier],
        cluster: Cluster,
        batches: tf.data.Dataset | PictureBatches,
        num_examples: int | None = None,
        features: tf.Tensor | None = None,
    ):
        self.num_examples = num_examples
        self._classifiers = [classifiers] if isinstance(classifiers, Classifier) else list(classifiers)
        self._batches = batches
        self._features = features
        _, images, *labels = batches.element_spec
        self._predict, graphs = [], []
        for classifier, its_images in zip(self._classifiers, _by_model(images), strict=True):
            function = classifier.evaluate_batch if labels else classifier.probability
            if features is not None:
                its_images, function = tf.TensorSpec([None, *features.shape[1:]]), classifier.evaluate_features
            predict = tf.function(function, input_signature=[its_images, *labels])
            # Builds the graph now, so that the first batch is not slower.
            graphs.append(predict.get_concrete_function().graph)
            self._predict.append(cluster.on_all_devices(predict))
        self.graph = graphs[0]

    def run(self, progress: tqdm) -> Iterator[PredictedBatch]:
        """Yields the batches in order, predicted with the present weights.

        Args:
            progress: a progress bar, updated after each batch.

        Raises:
            UserError: if a loss's probability() returns values that are not probabilities.
        """
        num_done = 0
        for ids, images, *labels in self._batches:
            all_images, by_model, losses = _by_model(images), [], []
            inputs = all_images if self._features is None else [self._features[num_done : num_done + len(ids)]]
            for i, (classifier, its_inputs) in enumerate(zip(self._classifiers, inputs, strict=True)):
                outputs = self._predict_in_parts(i, its_inputs, all_images[i].shape[1], labels)
                parts = [output[0] if labels else output for output in outputs]
                by_model.append(np.concatenate([part.numpy() for part in parts]))
                eval_util.check_probabilities(by_model[-1], classifier.spec.label_loss)
                if labels:
                    losses.append(sum(len(part) * float(loss) for part, loss in outputs) / len(by_model[-1]))
            probabilities = by_model[0] if len(by_model) == 1 else np.mean(by_model, axis=0, dtype=np.float64)
            largest = max(all_images, key=lambda one: one.shape[1])
            progress.update(len(ids))
            num_done += len(ids)
            yield PredictedBatch(
                ids.numpy(),
                largest,
                probabilities.astype(np.float32, copy=False),
                np.stack(by_model),
                labels[0].numpy() if labels else None,
                losses[0] if len(losses) == 1 else None,
            )

    def _predict_in_parts(self, model: int, inputs: tf.Tensor, image_size: int, labels: Sequence[tf.Tensor]) -> list:
        """Returns a model's outputs for the parts of a batch: more pictures at once would take too much memory."""
        rows = rows_at_once(image_size)
        starts = range(0, len(inputs), rows)
        parts = [[column[start : start + rows] for column in (inputs, *labels)] for start in starts]
        return [output for part in parts for output in self._predict[model](*part)]


def rows_at_once(image_size: int) -> int:
    """Returns how many pictures a model predicts at once."""
    return max(1, _PIXELS_AT_ONCE // image_size**2)


def _by_model(images: Any) -> tuple[Any, ...]:
    """Returns the images of each model, or what is known of them."""
    return images if isinstance(images, tuple) else (images,)
