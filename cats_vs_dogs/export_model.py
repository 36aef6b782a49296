"""Exports a model: as a SavedModel for batch prediction and serving, or for phones and other programs.

python cats_vs_dogs/export_model.py --train_dir=/tmp/cvd_model
python cats_vs_dogs/export_model.py --train_dir=/tmp/cvd_model --format=litert
"""

import os
import sys

if __package__ in (None, ""):  # Run as a file: import the package next to this file, from any folder.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    import cats_vs_dogs  # Sets what TensorFlow reads when it is imported.

    cats_vs_dogs.forget_edited()

import tempfile
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from absl import flags, logging

from cats_vs_dogs import config, files, user_files, utils
from cats_vs_dogs.labels import NUM_CLASSES
from cats_vs_dogs.path_flags import define_path

if TYPE_CHECKING:
    from cats_vs_dogs import readers
    from cats_vs_dogs.classifier import Classifier

FLAGS = flags.FLAGS

# What a SavedModel may consist of, see `publish`.
_SAVED_MODEL = ("saved_model.pb", "variables", "assets", "fingerprint.pb")
_DATA_FLAG = "eval_data_pattern"


def define_flags() -> None:
    """Defines the flags of this script."""
    define_path("train_dir", utils.default_train_dir(), "The folder of the model.", module_name="model")
    flags.DEFINE_enum(
        "format",
        "saved_model",
        ["saved_model", "litert", "onnx"],
        "What to export. saved_model: TensorFlow's format, which takes records and picture files; litert: models for "
        "phones and small computers, which take pixels, in float32 and with weights in int8; onnx: a model for ONNX "
        "Runtime, which takes pixels. Of the last two, the accuracy is printed.",
        module_name="output",
    )
    define_path(
        "export_dir",
        "",
        "The folder for the export. Empty: train_dir/export/step_<N>, for litert and onnx step_<N>_litert and "
        "step_<N>_onnx.",
        module_name="output",
    )
    define_path(
        _DATA_FLAG,
        "",
        "What to measure litert and onnx on, as in eval.py: labelled shards or photos. Empty: what eval.py uses.",
        module_name="data",
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
        prepare = readers.prepare_graph(reader)

        @tf.function(autograph=False, input_signature=[tf.TensorSpec([None], tf.string, name="example_bytes")])
        def predict(example_bytes):
            if type(reader) is readers.CatsVsDogsTestFeatureReader:  # A reader of your own may take other records.
                example_bytes = image_bytes.require_records(example_bytes)
            ids, images = prepare(example_bytes)
            return outputs(ids, classifier.probability(images))

        @tf.function(autograph=False, input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
        def predict_files(files):
            images, problems = image_bytes.read_pictures(prepare, files)
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

        signatures = {"serving_default": self._module.predict, "image_bytes": self._module.predict_files}
        publish(model_dir, lambda folder: tf.saved_model.save(self._module, folder, signatures=signatures))


def publish(model_dir: str, save: Callable[[str], None], parts: Sequence[str] = _SAVED_MODEL) -> None:
    """Writes an export, which appears when it is complete. An older one there is replaced.

    Args:
        model_dir: where.
        save: writes it to a local folder that does not exist.
        parts: names of all files and folders that such an export may have. The presence of the first one tells that an
            export is complete.

    Raises:
        UserError: if there is something else than such an export.
        OSError or tf.errors.OpError: if it cannot be written, see `files.explain_write_errors`.
    """
    check_replaceable(model_dir, parts)
    target, last = model_dir.rstrip("/"), parts[0]
    if files.is_remote(model_dir):
        with tempfile.TemporaryDirectory() as folder:
            save(f"{folder}/export")
            if files.exists(f"{target}/{last}"):  # It is deleted first and comes last.
                files.remove(f"{target}/{last}")
            files.upload(f"{folder}/export", target, last=last)
        return
    temporary = files.temporary_path(target)
    if files.exists(temporary):  # Of a killed process with the same number, as in a container.
        files.remove(temporary)
    try:
        save(temporary)
        if files.exists(target):
            files.remove(target)
        files.replace(temporary, target)
    except BaseException:
        if files.exists(temporary):
            files.remove(temporary)
        raise


def is_exported(model_dir: str) -> bool:
    """Whether there is a complete SavedModel."""
    return files.exists(f"{model_dir}/{_SAVED_MODEL[0]}")


def check_replaceable(model_dir: str, parts: Sequence[str] = _SAVED_MODEL) -> None:
    """Checks that an export may be written to a folder: it is absent, or holds nothing but parts of such an export.

    Some parts may be missing: an upload to an object store may have been interrupted.

    Args:
        model_dir: the folder.
        parts: see `publish`.

    Raises:
        UserError: if it is a file, or holds anything else, which would be deleted.
    """
    if not files.exists(model_dir):
        return
    is_folder = files.is_dir(model_dir)
    others = sorted(set(files.list_dir(model_dir)) - set(parts))
    if others or not is_folder:
        kind = "a SavedModel" if parts == _SAVED_MODEL else "such an export"
        why = f", since it holds {others[0]}" if others else ""
        raise utils.UserError(
            f"{model_dir}: exists and is not {kind}{why}; move that away, or name another --export_dir"
        )


def open_photos(
    train_dir: str, pattern: str, reader: "readers.BaseReader"
) -> "tuple[readers.BaseReader, readers.Shards, str] | None":
    """Opens the photos to measure models on.

    Args:
        train_dir: where the model is.
        pattern: see --eval_data_pattern.
        reader: returns pictures and labels.

    Returns:
        The reader, the shards and their name; None, with a warning, if `pattern` is "" and no photos are found.

    Raises:
        UserError: if what `pattern` names cannot be read.
    """
    from cats_vs_dogs import bad_examples, trained_data

    try:
        patterns, name = trained_data.find_eval_data([train_dir], pattern, _DATA_FLAG)
        shards = bad_examples.open_shards(patterns, _DATA_FLAG, reader, "fail", with_index=True)
    except utils.UserError as error:
        if pattern:
            raise
        logging.warning("the accuracy is not measured: %s", error)
        return None
    return reader, shards, name


def export_pixel_models(
    classifier: "Classifier", step: int, train_dir: str, pattern: str, export_dir: str, model_format: str
) -> None:
    """Exports models that take pixels, and prints their accuracy.

    Args:
        classifier: the model, with the weights of the step.
        step: the step.
        train_dir: where the model is.
        pattern: see --eval_data_pattern.
        export_dir: where to export to.
        model_format: "litert" or "onnx".
    """
    from cats_vs_dogs import bad_examples, pixel_models
    from cats_vs_dogs.open_reader import open_reader

    check_replaceable(export_dir, pixel_models.PARTS)
    reader = open_reader(True, classifier.spec.image_size, classifier.spec.resize_method)
    photos = open_photos(train_dir, pattern, reader)  # Before the model is converted, which takes longer.
    models = pixel_models.convert(classifier, reader, model_format)
    accuracy = None
    if photos:
        with bad_examples.explain_read_errors(*photos[:2]):
            accuracy = pixel_models.measure(models, *photos)
    facts = pixel_models.about(classifier, reader, step, models, accuracy)
    with files.explain_write_errors(export_dir, "export_dir"):
        publish(export_dir, lambda folder: pixel_models.write(folder, models, facts), pixel_models.PARTS)
    print(*pixel_models.table(models, accuracy), sep="\n", flush=True)


def main() -> None:
    """Exports what the flags name."""
    train_dir, export_dir, model_format = FLAGS.train_dir, FLAGS.export_dir, FLAGS.format
    eval_data_pattern = FLAGS.eval_data_pattern
    if eval_data_pattern and model_format == "saved_model":
        raise utils.UserError(
            f"--{_DATA_FLAG}={eval_data_pattern}: with --format=saved_model nothing is measured; leave it out"
        )
    config.require_model(train_dir)
    utils.import_tensorflow()
    user_files.import_all()
    from cats_vs_dogs import checkpoints
    from cats_vs_dogs import train_dir as train_dirs
    from cats_vs_dogs.classifier import Classifier

    classifier = Classifier(train_dirs.load_spec(train_dir))
    step = checkpoints.step_of(checkpoints.restore_newest(classifier, train_dir))
    export_dir = export_dir or train_dirs.export_dir(train_dir, step, model_format)
    if model_format == "saved_model":
        check_replaceable(export_dir)
    files.make_output_folder(os.path.dirname(export_dir.rstrip("/")) or ".", "export_dir")
    if model_format == "saved_model":
        with files.explain_write_errors(export_dir, "export_dir"):
            ModelExporter(classifier).export_model(export_dir)
    else:
        export_pixel_models(classifier, step, train_dir, eval_data_pattern, export_dir, model_format)
    logging.info("Exported the model at step %d to %s.", step, export_dir)


if __name__ == "__main__":
    utils.run_script(main, define_flags)
