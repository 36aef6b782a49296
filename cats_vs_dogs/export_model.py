"""Exports a model as a SavedModel that takes serialized records, for batch prediction and serving.

python cats_vs_dogs/export_model.py --train_dir=/tmp/cvd_model
"""

import os
import sys

if __package__ in (None, ""):  # Run as a file: import the package next to this file, from any folder.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    import cats_vs_dogs  # Sets what TensorFlow reads when it is imported.

    cats_vs_dogs.forget_edited()

import tempfile
from typing import TYPE_CHECKING

from absl import flags, logging

from cats_vs_dogs import config, files, user_files, utils
from cats_vs_dogs.labels import NUM_CLASSES
from cats_vs_dogs.path_flags import define_path

if TYPE_CHECKING:
    from cats_vs_dogs.classifier import Classifier

FLAGS = flags.FLAGS

_GRAPH = "saved_model.pb"


def define_flags() -> None:
    """Defines the flags of this script."""
    define_path("train_dir", utils.default_train_dir(), "The folder of the model.", module_name="model")
    define_path(
        "export_dir", "", "The folder for the SavedModel. Empty: train_dir/export/step_<N>.", module_name="output"
    )


class ModelExporter:
    """Exports a classifier as often as it is asked to, while it trains.

    The signature "serving_default" takes `example_bytes`, string [batch], serialized `tf.train.Example`s, and returns
    `image_id`, string [batch]; `class_indexes`, int32 [batch, 2], always 0 (cat) and 1 (dog); `predictions`, float32
    [batch, 2], the probabilities of these classes.

    The signature "image_bytes" takes `image_bytes`, string [batch], JPEG and PNG files. It returns the same, with ""
    as `image_id`, and `problem`, string [batch], why a picture cannot be read: its predictions are then NaN. "" if it
    can.

    Args:
        classifier: what to export, with the weights it has when `export_model` is called.
    """

    def __init__(self, classifier: "Classifier"):
        import tensorflow as tf

        from cats_vs_dogs import image_bytes, readers
        from cats_vs_dogs.open_reader import open_reader

        spec = classifier.spec
        reader = open_reader(False, spec.image_size, spec.resize_method)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="example_bytes")])
        def predict(example_bytes):
            if type(reader) is readers.CatsVsDogsTestFeatureReader:  # A reader of your own may take other records.
                example_bytes = image_bytes.require_records(example_bytes)
            ids, images = reader.prepare_serialized_examples(example_bytes)
            return outputs(ids, classifier.probability(images))

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
        def predict_files(files):
            images, problems = image_bytes.read_pictures(reader, files)
            dog = tf.where(problems[:, tf.newaxis] == b"", classifier.probability(images), float("nan"))
            return outputs(tf.zeros_like(files), dog) | {"problem": problems}

        def outputs(ids, dog):
            class_indexes = tf.tile(tf.range(NUM_CLASSES)[tf.newaxis], [tf.shape(dog)[0], 1])
            predictions = tf.concat([1.0 - dog, dog], axis=1)
            return {"image_id": ids, "class_indexes": class_indexes, "predictions": predictions}

        self._module = tf.Module()
        self._module.predict = predict
        self._module.predict_files = predict_files
        variables = classifier.model.weights + classifier.model.seed_states
        self._module.tracked = [variable.value for variable in variables]

    def export_model(self, model_dir: str) -> None:
        """Writes a SavedModel, which appears when it is complete. An older one there is replaced.

        Raises:
            UserError: if there is something else than a SavedModel.
        """
        import tensorflow as tf

        check_replaceable(model_dir)
        target = model_dir.rstrip("/")
        signatures = {"serving_default": self._module.predict, "image_bytes": self._module.predict_files}
        if files.is_remote(model_dir):
            with tempfile.TemporaryDirectory() as folder:
                tf.saved_model.save(self._module, folder, signatures=signatures)
                if is_exported(target):  # An export is there when its graph is: that is deleted first and comes last.
                    files.remove(f"{target}/{_GRAPH}")
                files.upload(folder, target, last=_GRAPH)
            return
        temporary = files.temporary_path(target)
        try:
            tf.saved_model.save(self._module, temporary, signatures=signatures)
            if files.exists(target):
                files.remove(target)
            files.replace(temporary, target)
        except BaseException:
            if files.exists(temporary):
                files.remove(temporary)
            raise


def is_exported(model_dir: str) -> bool:
    """Whether there is a complete SavedModel."""
    return files.exists(f"{model_dir}/{_GRAPH}")


def check_replaceable(model_dir: str) -> None:
    """Checks that a SavedModel may be written to a folder: it is absent, empty, or a SavedModel.

    Raises:
        UserError: if it holds anything else.
    """
    if not files.exists(model_dir):
        return
    names = set(files.list_dir(model_dir)) if files.is_dir(model_dir) else {model_dir}
    # Other parts without the graph, which is uploaded last: an upload to an object store was interrupted.
    if _GRAPH not in names and names - {"variables", "assets", "fingerprint.pb"}:
        raise utils.UserError(f"{model_dir}: exists and is not a SavedModel; name another --export_dir")


def main() -> None:
    """Exports what the flags name."""
    train_dir, export_dir = FLAGS.train_dir, FLAGS.export_dir
    config.require_model(train_dir)
    utils.import_tensorflow()
    user_files.import_all()
    from cats_vs_dogs import checkpoints
    from cats_vs_dogs import train_dir as train_dirs
    from cats_vs_dogs.classifier import Classifier

    classifier = Classifier(train_dirs.load_spec(train_dir))
    step = checkpoints.step_of(checkpoints.restore_newest(classifier, train_dir))
    export_dir = export_dir or train_dirs.export_dir(train_dir, step)
    check_replaceable(export_dir)
    files.make_output_folder(os.path.dirname(export_dir.rstrip("/")) or ".", "export_dir")
    ModelExporter(classifier).export_model(export_dir)
    logging.info("Exported the model at step %d to %s.", step, export_dir)


if __name__ == "__main__":
    utils.run_script(main, define_flags)
