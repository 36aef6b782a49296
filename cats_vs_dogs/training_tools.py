"""The tools of the training loop: what takes steps, reads batches, evaluates, saves and exports."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence

import tensorflow as tf
from absl import logging

from cats_vs_dogs import (
    augmentation,
    bad_examples,
    checkpoints,
    export_model,
    files,
    frozen_features,
    pixel_files,
    readers,
    report,
    train_dir,
    utils,
)
from cats_vs_dogs.classifier import Classifier
from cats_vs_dogs.evaluation import Evaluator
from cats_vs_dogs.interruption import Alarm, StopRequest
from cats_vs_dogs.job import Job
from cats_vs_dogs.prediction import Predictor, rows_at_once
from cats_vs_dogs.trainer import Profiler, Trainer
from cats_vs_dogs.training_evaluation import NoEvaluation, TrainingEvaluation
from cats_vs_dogs.training_log import TrainingLog


@dataclasses.dataclass(frozen=True)
class Tools:
    """What the loop works with. On workers other than the chief, those that write do nothing."""

    trainer: Trainer
    batches: Iterator
    log: TrainingLog
    evaluation: TrainingEvaluation | NoEvaluation
    saver: "Saver"
    exporter: "Exporter"
    profiler: Profiler
    stop: StopRequest


class Nothing:
    """Takes the place of an object that writes, on workers other than the chief: its methods do nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


class Saver:
    """Saves the state, after the records that belong to it.

    Args:
        state: what is saved.
        log: is flushed before.
        alarm: interrupts the steps when it is time to save.
    """

    def __init__(self, state: checkpoints.TrainState, log: TrainingLog, alarm: Alarm):
        self._state = state
        self._log = log
        self._alarm = alarm

    def is_due(self) -> bool:
        """Whether --save_checkpoint_secs have passed."""
        return self._alarm.is_due()

    def save(self) -> None:
        """Saves, and starts to count the time to the next checkpoint."""
        self._log.flush()
        logging.info("Saved %s.", self._state.save())
        self._alarm.restart()


class Exporter:
    """Exports the model.

    Args:
        folder: the train_dir.
        classifier: what is trained.
        predictor: the same model for export; gets its weights.
    """

    def __init__(self, folder: str, classifier: Classifier, predictor: Classifier):
        self._folder = folder
        self._classifier = classifier
        self._predictor = predictor

    @functools.cached_property
    def _exporter(self) -> export_model.ModelExporter:
        return export_model.ModelExporter(self._predictor)  # Builds graphs, which the first step need not wait for.

    def export(self, step: int, is_replaced: bool = True) -> None:
        """Exports the model as that of a step; with `is_replaced` False, only if it is not there yet."""
        model_dir = train_dir.export_dir(self._folder, step)
        if not is_replaced and export_model.is_exported(model_dir):
            return
        logging.info("Exporting the model at step %d to %s.", step, model_dir)
        files.make_dirs(os.path.dirname(model_dir))
        self._predictor.copy_weights(self._classifier)
        self._exporter.export_model(model_dir)


def use_features(job: Job) -> bool:
    """Returns whether to train on features that are calculated once per picture, and logs why.

    The answer depends on the whole run, not on the steps left: a resumed run does the same as an uninterrupted one.
    """
    model, settings, plan = job.classifier.model, job.settings, job.plan
    if model.frozen is None:
        return False
    augment = settings.data.augment
    needed = frozen_features.num_bytes(model, plan.num_examples, _has_mirrored(augment)) if not job.sizes else 0
    size = f"{needed / 2**20:,.0f} MiB"
    if settings.data.cache == "none":
        why_not = "--cache=none"
    elif augment not in ("none", "flip"):
        why_not = f"--augment={augment} makes other pictures each time"
    elif job.sizes:
        why_not = "training pictures grow"
    elif plan.total_steps <= plan.steps_per_epoch:
        why_not = "only one epoch"
    elif settings.data.cache != "memory" and needed > utils.free_memory() / 4:
        why_not = f"its results take {size}, more than a quarter of the free memory"
    else:
        logging.info("The frozen part of %s runs once for each picture; its results take %s.", model.name, size)
        return True
    logging.info("The frozen part of %s runs in each epoch: %s.", model.name, why_not)
    return False


def _has_mirrored(augment: str) -> bool:
    """Whether training needs features of mirror images, too."""
    return augment == "flip"


def make_trainer(job: Job, interrupts: Sequence[tf.Variable], on_features: bool) -> Trainer:
    """Returns what takes the steps, on batches of features or of pictures."""
    num_gpus = len(tf.config.list_logical_devices("GPU"))
    # XLA cannot synchronise batch norm across devices.
    is_compiled = {"on": True, "off": False, "auto": num_gpus > 0 and job.cluster.num_replicas == 1}
    is_deterministic = os.environ.get("TF_DETERMINISTIC_OPS", "").lower() in ("1", "true")  # As TensorFlow reads it.
    return Trainer(
        job.classifier,
        job.optimizer,
        job.cluster.strategy,
        job.settings.optimizer,
        is_compiled[job.settings.system.jit_compile],
        interrupts,
        measures_waiting=not (job.settings.system.deterministic or is_deterministic),
        on_features=on_features,
        mix=_mix_function(job),
    )


def _mix_function(job: Job) -> Callable | None:
    """Returns what mixes the images of a batch, or None.

    Raises:
        UserError: if the model calculates its own loss, which takes one label for each image.
    """
    augment, model = job.settings.data.augment, job.classifier.model
    if augment != "flip_crop_mix":
        return None
    if model.has_loss:
        raise utils.UserError(
            f"--augment={augment}: {model.name} calculates its own loss, which takes one label for each picture; give "
            "another --augment, such as flip_crop"
        )
    seed, total_steps = job.settings.system.seed, job.plan.total_steps
    return functools.partial(augmentation.mix, seed=seed, total_steps=total_steps)


def make_batches(job: Job, epochs_left: float, on_features: bool) -> tf.data.Dataset:
    """Returns the batches of the run, from the step on that it resumes from: of features or of pictures."""
    data, seed, batch_size = job.settings.data, job.settings.system.seed, job.plan.batch_size

    def change(images: tf.Tensor, step: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        if on_features:
            return augmentation.choose_view(images, seed, step, rows, batch_size)
        size = job.sizes.size_at(step) if job.sizes else None
        return augmentation.augment(images, data.augment, seed, step, rows, batch_size, size)

    decoded = None
    if on_features:
        with_mirrored = _has_mirrored(data.augment)
        decoded = frozen_features.calculate(job.classifier.model, job.reader, job.shards, with_mirrored)
    elif epochs_left > 0:
        decoded = keep_pictures(data.cache, job.reader, job.shards, epochs_left)
    return readers.make_training_dataset(
        job.reader,
        job.shards,
        readers.Order(batch_size, seed, job.settings.periods.num_epochs, job.state.step, data.num_readers),
        decoded,
        job.cluster.num_replicas,
        job.cluster.replicas,
        change,
    )


def keep_pictures(
    cache: str, reader: readers.BaseReader, shards: readers.Shards, epochs_left: float
) -> tuple[tf.Tensor, ...] | None:
    """Decodes all pictures once, unless each epoch is to decode them, and logs which of these happens and why.

    Args:
        cache: one of config.CACHES.
        reader: how to read a record.
        shards: what to read.
        epochs_left: how many epochs remain.

    Returns:
        The result of `readers.decode_all`, in memory or mapped from files; None: decode in each epoch.

    Raises:
        UserError: if they cannot be written to the disk, as `cache` says.
    """
    if cache == "none":
        return None
    needed = readers.decoded_bytes(reader, shards)
    # Without the free memory itself: the same run twice has the same log.
    fits = needed <= utils.free_memory() / 4
    why = f"{needed / 2**20:,.0f} MiB, {'at most' if fits else 'more than'} a quarter of what is free"
    if cache == "memory" or (cache == "auto" and fits and epochs_left > 1):
        logging.info("Cache: pictures are decoded once and stay in memory (%s).", why)
        return readers.decode_all(reader, shards)
    if cache == "auto" and epochs_left <= 1:
        logging.info("Cache: pictures are decoded in each epoch (only one epoch).")
        return None
    on_disk = pixel_files.PixelFiles(reader, shards)
    if cache == "auto" and not on_disk.has_room():
        logging.info("Cache: pictures are decoded in each epoch (%s in memory and in %s).", why, on_disk.parent)
        return None
    why = "--cache=disk" if cache == "disk" else f"{why} in memory"
    logging.info("Cache: pictures are decoded once and stay in files (%s).", why)
    return map_pictures(cache, on_disk)


def map_pictures(cache: str, on_disk: pixel_files.PixelFiles) -> tuple[tf.Tensor, ...] | None:
    """Returns decoded pictures from files; None, with a warning, if they cannot be written and need not be.

    Args:
        cache: "disk": they must be written; "auto".
        on_disk: the files.

    Raises:
        UserError: if they must be written and cannot.
    """
    try:
        return on_disk.columns()
    except OSError as error:
        message = f"decoded pictures cannot be written to {on_disk.parent}: {files.explain_error(error)}"
        advice = "set XDG_CACHE_HOME to a folder that can be written to and has room"
        if cache == "disk":
            raise utils.UserError(f"--cache=disk: {message}; {advice}, or pass --cache=none") from error
        logging.warning("%s; they are decoded in each epoch; %s", message, advice)
        return None


def make_evaluation(job: Job, log: TrainingLog, on_features: bool) -> TrainingEvaluation | NoEvaluation:
    """Returns what evaluates while training, on features that are calculated once or on pictures."""
    if not job.eval_shards:
        return NoEvaluation()

    def make_evaluator() -> Evaluator:
        # About what is predicted at once, since the next training batches wait in memory meanwhile.
        batch_size = min(max(64, rows_at_once(job.settings.model.image_size)), 1024)
        cache, needed = job.settings.data.cache, readers.decoded_bytes(job.reader, job.eval_shards)
        fits, decoded = needed <= utils.free_memory() / 4, None
        if cache == "disk" or (cache == "auto" and not fits and job.plan.total_steps > job.plan.steps_per_epoch):
            on_disk = pixel_files.PixelFiles(job.reader, job.eval_shards)
            decoded = map_pictures(cache, on_disk) if cache == "disk" or on_disk.has_room() else None
        batches = readers.make_dataset(job.reader, job.eval_shards, batch_size, decoded)
        if cache in ("auto", "memory") and fits:
            batches = batches.cache()
        features = None
        if on_features:
            _, views, _ = frozen_features.calculate(job.predictor.model, job.reader, job.eval_shards, False)
            features = views[:, 0]
        predictor = Predictor(job.predictor, job.cluster, batches, job.eval_shards.num_examples, features)
        explain_errors = functools.partial(bad_examples.explain_read_errors, job.reader, job.eval_shards)
        return Evaluator(predictor, explain_errors=explain_errors)

    folder = job.settings.train_dir
    return TrainingEvaluation(
        folder,
        make_evaluator,
        job.predictor,
        job.classifier,
        job.state.progress,
        log,
        job.settings.periods.early_stop_evals,
        {"eval_data_pattern": job.record["flags"]["eval_data_pattern"], "trained_on": job.eval_trained_on},
        report.Report(train_dir.eval_dir(folder), [folder], [job.predictor], job.reader, job.eval_shards)
        if job.settings.report
        else None,
    )
