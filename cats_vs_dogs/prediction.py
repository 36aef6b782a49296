"""The one loop that predicts: evaluation, evaluation while training, and inference run it."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from cats_vs_dogs import eval_util
from cats_vs_dogs.classifier import Classifier
from cats_vs_dogs.distribution import Cluster
from cats_vs_dogs.picture_files import PictureBatches


@dataclasses.dataclass(frozen=True)
class PredictedBatch:
    """A batch and what the model says about it.

    Attributes:
        ids: bytes [batch].
        images: what the reader returned for the pictures.
        probabilities: float32 [batch, 1], probability of a dog, in [0, 1].
        labels: int32 [batch, 1], 1 = dog; None if the examples are unlabelled.
        loss: the mean label loss of the batch; None if the examples are unlabelled.
    """

    ids: np.ndarray
    images: tf.Tensor
    probabilities: np.ndarray
    labels: np.ndarray | None = None
    loss: float | None = None


class Predictor:
    """Predicts the same dataset again and again, while the weights of the model may change.

    Args:
        classifier: the model, built in the scope of the cluster's strategy.
        cluster: the devices to predict on.
        batches: ids, images and, for labelled examples, labels.
        num_examples: number of examples, for the progress bar. None: unknown.
        features: those of the examples, float32 [n, ...]: the model is only run from them on. None: on the pictures.

    Attributes:
        graph: the TensorFlow graph that predicts a batch.
    """

    def __init__(
        self,
        classifier: Classifier,
        cluster: Cluster,
        batches: tf.data.Dataset | PictureBatches,
        num_examples: int | None = None,
        features: tf.Tensor | None = None,
    ):
        self.num_examples = num_examples
        self._classifier = classifier
        self._batches = batches
        self._features = features
        spec = batches.element_spec[1:]
        function = classifier.evaluate_batch if len(spec) > 1 else classifier.probability
        if features is not None:
            spec, function = (tf.TensorSpec([None, *features.shape[1:]]), *spec[1:]), classifier.evaluate_features
        predict = tf.function(function, input_signature=spec)
        # Builds the graph now, so that the first batch is not slower.
        self.graph = predict.get_concrete_function().graph
        self._predict = cluster.on_all_devices(predict)

    def run(self, progress: tqdm) -> Iterator[PredictedBatch]:
        """Yields the batches in order, predicted with the present weights.

        Args:
            progress: a progress bar, updated after each batch.

        Raises:
            UserError: if the loss's probability() returns values that are not probabilities.
        """
        num_done = 0
        for ids, images, *labels in self._batches:
            inputs = images if self._features is None else self._features[num_done : num_done + len(ids)]
            outputs = self._predict(inputs, *labels)
            parts = [output[0] if labels else output for output in outputs]
            probabilities = np.concatenate([part.numpy() for part in parts])
            eval_util.check_probabilities(probabilities, self._classifier.spec.label_loss)
            progress.update(len(probabilities))
            num_done += len(probabilities)
            if not labels:
                yield PredictedBatch(ids.numpy(), images, probabilities)
                continue
            loss = sum(len(part) * float(loss) for part, loss in outputs) / len(probabilities)
            yield PredictedBatch(ids.numpy(), images, probabilities, labels[0].numpy(), loss)
