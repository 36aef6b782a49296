"""Exports a model as a SavedModel that takes serialized records, for batch prediction and serving.

python cats_vs_dogs/export_model.py --train_dir=/tmp/cvd_model
"""

import os
import sys

if __package__ in (None, ""):  # Run as a file: import the package beside this file, from whatever folder.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    import cats_vs_dogs  # noqa: F401 - Sets what TensorFlow reads when it is imported.

import contextlib
import tempfile

import tensorflow as tf
from absl import flags, logging

from cats_vs_dogs import checkpoints, files, readers, utils
from cats_vs_dogs.classifier import NUM_CLASSES, Classifier

FLAGS = flags.FLAGS


def define_flags() -> None:
    flags.DEFINE_string("train_dir", utils.default_train_dir(), "The directory to load the model from.")
    flags.DEFINE_string("export_dir", "", "The directory to write the SavedModel to. Empty: train_dir/export/step_<N>.")


class ModelExporter:
    """Exports a classifier, again and again while it trains.

    The signature "serving_default" takes `example_bytes`, string [batch], serialized `tf.train.Example`s, and gives
    `image_id`, string [batch]; `class_indexes`, int32 [batch, 2], always 0 (cat) and 1 (dog); `predictions`, float32
    [batch, 2], the probabilities of these classes.

    Args:
        classifier: what to export, with the weights it has when `export_model` is called.
    """

    def __init__(self, classifier: Classifier):
        spec = classifier.spec
        reader = readers.get_reader(False, spec.image_size, spec.resize_method)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="example_bytes")])
        def predict(example_bytes):
            ids, images = reader.prepare_serialized_examples(example_bytes)
            dog = classifier.probability(images)
            class_indexes = tf.tile(tf.range(NUM_CLASSES)[tf.newaxis], [tf.shape(dog)[0], 1])
            return {
                "image_id": ids,
                "class_indexes": class_indexes,
                "predictions": tf.concat([1.0 - dog, dog], axis=1),
            }

        self._module = tf.Module()
        self._module.predict = predict
        variables = classifier.model.weights + classifier.model.seed_states
        self._module.tracked = [variable.value for variable in variables]

    def export_model(self, model_dir: str) -> None:
        """Writes a SavedModel, aside first and renamed when whole. An older one there is replaced.

        Raises:
            UserError: if there is something else than a SavedModel.
        """
        check_replaceable(model_dir)
        if files.is_remote(model_dir):
            with tempfile.TemporaryDirectory() as folder:
                tf.saved_model.save(self._module, folder, signatures={"serving_default": self._module.predict})
                target = model_dir.rstrip("/")
                if is_exported(target):  # It is there when its graph is: that goes first and comes last.
                    tf.io.gfile.remove(f"{target}/{_GRAPH}")
                files.upload(folder, target, last=_GRAPH)
            return
        aside = f"{model_dir.rstrip('/')}.{os.getpid()}.tmp"
        try:
            tf.saved_model.save(self._module, aside, signatures={"serving_default": self._module.predict})
        except BaseException:
            with contextlib.suppress(tf.errors.OpError):
                tf.io.gfile.rmtree(aside)
            raise
        if tf.io.gfile.exists(model_dir):
            tf.io.gfile.rmtree(model_dir)
        tf.io.gfile.rename(aside, model_dir)


_GRAPH = "saved_model.pb"


def is_exported(model_dir: str) -> bool:
    """Whether there is a whole SavedModel."""
    return tf.io.gfile.exists(f"{model_dir}/{_GRAPH}")


def check_replaceable(model_dir: str) -> None:
    """Raises UserError unless a SavedModel may be written to `model_dir`: it is absent, empty, or a SavedModel."""
    gfile = tf.io.gfile
    if not gfile.exists(model_dir):
        return
    names = {name.rstrip("/") for name in gfile.listdir(model_dir)} if gfile.isdir(model_dir) else {model_dir}
    # Without its graph, which is uploaded last, but with other parts of it: an upload to an object store broke off.
    if _GRAPH not in names and names - {"", "variables", "assets", "fingerprint.pb"}:
        raise utils.UserError(f"{model_dir}: is there already and no SavedModel; name another --export_dir")


def export_path(train_dir: str, step: int) -> str:
    """Returns where the export of a step belongs."""
    return os.path.join(train_dir, "export", f"step_{step}")


def main() -> None:
    classifier = Classifier(checkpoints.load_spec(FLAGS.train_dir))
    checkpoint_path = checkpoints.restore_newest(classifier, FLAGS.train_dir)
    export_dir = FLAGS.export_dir or export_path(FLAGS.train_dir, checkpoints.step_of(checkpoint_path))
    check_replaceable(export_dir)
    files.make_output_folder(os.path.dirname(export_dir.rstrip("/")) or ".", "export_dir")
    ModelExporter(classifier).export_model(export_dir)
    logging.info("Exported the model at step %d to %s.", checkpoints.step_of(checkpoint_path), export_dir)


if __name__ == "__main__":
    utils.run_script(main, define_flags)
