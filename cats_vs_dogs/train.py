"""Trains a model on TFRecord shards.

    python cats_vs_dogs/train.py --train_data_pattern='shards/train-*' --train_dir=/tmp/cvd_model --model=LogisticModel

Started again with the same flags it goes on from the newest checkpoint in train_dir.
"""

import os
import sys

if __package__ in (None, ""):  # Run as a file: import the package beside this file, from whatever folder.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    import cats_vs_dogs  # noqa: F401 - Sets what TensorFlow reads when it is imported.

import dataclasses
import datetime
import functools
import math
import re
import shlex
import signal
import time
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf
from absl import flags, logging

from cats_vs_dogs import (
    augmentation,
    bad_examples,
    checkpoints,
    distribution,
    eval_util,
    event_files,
    export_model,
    files,
    metrics_file,
    optimizers,
    readers,
    run_record,
    sample_data,
    summaries,
    utils,
)
from cats_vs_dogs import eval as eval_script
from cats_vs_dogs.classifier import Classifier, ModelSpec
from cats_vs_dogs.interruption import StopRequest
from cats_vs_dogs.trainer import StepOutputs, Trainer

FLAGS = flags.FLAGS


def define_flags() -> None:
    # Dataset flags.
    flags.DEFINE_string("train_dir", utils.default_train_dir(), "The directory to save the model files in.")
    flags.DEFINE_string(
        "train_data_pattern", "", "File glob for the training shards. Empty: the kit's own sample set, drawn once."
    )
    flags.DEFINE_string(
        "eval_data_pattern",
        "",
        "File glob for labelled shards to evaluate on while training: at each checkpoint, of which there is then one "
        "after each epoch, too. train_dir/best holds the model with the lowest loss. Empty: no evaluation.",
    )
    flags.DEFINE_integer("image_size", 32, "Height and width that pictures are resized to, pixels.", 1, 4096)
    flags.DEFINE_integer(
        "first_image_size",
        0,
        "Height and width of training pictures at the start, pixels; they grow by 32 at a time to image_size, each "
        "size for half as many steps as the one before, which takes much less time. Needs a model that takes any size, "
        "such as ConvNetModel. 0: image_size from the start.",
        0,
        4096,
    )
    flags.DEFINE_enum(
        "resize_method",
        "area",
        readers.RESIZE_METHODS,
        "How pictures are resized: area averages; legacy_bilinear gives the pixels of the 2017 kit, bit for bit.",
    )
    flags.DEFINE_enum(
        "augment",
        "none",
        augmentation.KINDS,
        "How training pictures are changed at random each time they are seen: flip mirrors half of them; flip_crop "
        "also cuts out at least half of each side; flip_crop_colour also changes brightness, contrast and saturation.",
    )
    flags.DEFINE_enum(
        "bad_examples",
        "fail",
        ["fail", "skip"],
        "What to do with a record that cannot be read: fail names it and stops; skip reads everything once before, "
        "leaves the bad ones out and lists them in train_dir/bad_examples.csv.",
    )
    flags.DEFINE_enum(
        "cache",
        "auto",
        ["auto", "memory", "none"],
        "Whether decoded pictures stay in memory for the next epochs; auto: if they take at most a quarter of the free "
        "memory. The order of examples is the same either way.",
    )

    # Model flags.
    flags.DEFINE_string("model", "LogisticModel", "Which model to train: a class in cvd_models.py.")
    flags.DEFINE_string(
        "model_params", "", "JSON object of parameters for create_model, such as '{\"num_mixtures\": 4}'. Empty: none."
    )
    flags.DEFINE_bool(
        "start_new_model",
        False,
        "Delete the model in train_dir and start anew, instead of going on from its newest checkpoint.",
    )

    # Training flags.
    flags.DEFINE_integer("batch_size", 512, "How many examples a step takes on each device.", 1, 2**31 - 1)
    flags.DEFINE_string("label_loss", "CrossEntropyLoss", "Which loss to train with: a class in losses.py.")
    flags.DEFINE_string(
        "loss_params", "", "JSON object of parameters for calculate_loss, such as '{\"b\": 2.0}'. Empty: none."
    )
    flags.DEFINE_float(
        "regularization_penalty",
        1.0,
        "Weight of the regularization loss (the label loss has a weight of 1). 0: none.",
        lower_bound=0.0,
    )
    flags.DEFINE_float("base_learning_rate", 0.01, "The learning rate to start with.", lower_bound=0.0)
    flags.DEFINE_enum(
        "learning_rate_schedule",
        "exponential",
        optimizers.SCHEDULES,
        "exponential: multiplied with learning_rate_decay every learning_rate_decay_examples; cosine: down to 0 at the "
        "end of training; constant.",
    )
    flags.DEFINE_float(
        "learning_rate_decay", 0.95, "Factor of the exponential schedule.", lower_bound=0.0, upper_bound=1.0
    )
    flags.DEFINE_float(
        "learning_rate_decay_examples", 4000000, "Period of the exponential schedule, examples.", lower_bound=1.0
    )
    flags.DEFINE_integer(
        "warmup_examples",
        0,
        "The learning rate grows linearly over so many examples at the start. 0: no warm-up.",
        lower_bound=0,
    )
    flags.DEFINE_integer("num_epochs", 5, "How many passes to make over the data.", 1, 2**31 - 1)
    flags.DEFINE_integer(
        "max_steps", None, "The number of steps to stop at, even before num_epochs. Not given: no limit.", lower_bound=1
    )
    flags.DEFINE_integer(
        "early_stop_evals",
        0,
        "Stop after so many evaluations in a row without a lower loss than the best. 0: never. Needs "
        "eval_data_pattern.",
        lower_bound=0,
    )
    flags.DEFINE_string(
        "optimizer", "AdamOptimizer", "Which optimizer: a name of tf.train in 2017, or a class of keras.optimizers."
    )
    flags.DEFINE_string(
        "optimizer_params",
        "",
        "JSON object of further arguments of the class of keras.optimizers, such as '{\"weight_decay\": 0.05}', which "
        "leaves biases and batch norm alone. Empty: none.",
    )
    flags.DEFINE_float(
        "clip_gradient_norm", 1.0, "Largest norm of the gradient of each variable. 0: no limit.", lower_bound=0.0
    )
    flags.DEFINE_integer(
        "seed",
        0,
        "Seed of the initial weights, the order of examples, and random layers. The same seed gives the same weights "
        "to the bit on CPUs; for GPUs see deterministic.",
        0,
        2**32 - 1,
    )
    flags.DEFINE_bool(
        "deterministic",
        False,
        "Use only GPU kernels that give the same bits each time; they are slower. CPUs do so in any case.",
    )

    # What happens when.
    flags.DEFINE_integer("log_steps", 10, "The period, in steps, of log lines and summaries.", lower_bound=1)
    flags.DEFINE_integer(
        "export_model_steps",
        1000,
        "The period, in steps, with which the model is exported for batch prediction; it is exported at the end in any "
        "case. 0: only then.",
        lower_bound=0,
    )
    flags.DEFINE_float(
        "save_checkpoint_secs",
        900,
        "The period, in seconds, of checkpoints; one is saved at the end in any case. 0: only then.",
        lower_bound=0.0,
    )
    flags.DEFINE_integer("keep_checkpoints", 5, "How many checkpoints to keep, the newest ones.", lower_bound=1)

    flags.DEFINE_list(
        "profile_steps",
        [],
        "Two steps, such as 10,20: what is done between them is recorded for the Profile tab of TensorBoard. Empty: no "
        "profile.",
    )

    # Other flags.
    flags.DEFINE_integer("num_readers", 8, "How many shards are read in turn.", lower_bound=1)
    flags.DEFINE_enum(
        "precision",
        "float32",
        ["float32", "mixed_bfloat16", "mixed_float16"],
        "What the layers calculate in while training. Weights, loss and export are float32 in any case.",
    )
    flags.DEFINE_enum(
        "jit_compile",
        "auto",
        ["auto", "on", "off"],
        "Whether XLA compiles the training step; auto: on GPUs, not on CPUs, where it is slower.",
    )
    flags.DEFINE_bool(
        "log_device_placement", False, "Whether to log the device on which every op runs, when it first does."
    )


@dataclasses.dataclass(frozen=True)
class Plan:
    """How many steps there are, and how many examples they take. The last step of an epoch may take fewer.

    Attributes:
        num_examples: examples in an epoch.
        batch_size: examples a step, over all devices.
        num_epochs: passes over the data.
        max_steps: the step to stop at, even before; None: no limit.
    """

    num_examples: int
    batch_size: int
    num_epochs: int
    max_steps: int | None

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch, its last one perhaps smaller."""
        return -(-self.num_examples // self.batch_size)

    @property
    def total_steps(self) -> int:
        """The step to stop at."""
        return min(self.num_epochs * self.steps_per_epoch, self.max_steps or sys.maxsize)

    @property
    def ends_at_max_steps(self) -> bool:
        """Whether it is `max_steps` that ends training."""
        return self.max_steps is not None and self.max_steps < self.num_epochs * self.steps_per_epoch

    def examples_at(self, step: int) -> int:
        """Returns how many examples have been seen when `step` steps are done."""
        epochs, steps = divmod(step, self.steps_per_epoch)
        return epochs * self.num_examples + min(steps * self.batch_size, self.num_examples)

    def epoch_of(self, step: int) -> int:
        """Returns the number of the epoch, from 1, that a step belongs to; that of the first is 1."""
        return -(-step // self.steps_per_epoch)

    def __str__(self) -> str:
        epochs = self.examples_at(self.total_steps) / self.num_examples
        return (
            f"{self.num_examples:,} examples, {self.total_steps:,} steps = {epochs:.4g} epochs of "
            f"{self.steps_per_epoch:,} steps."
        )


class Report:
    """Log lines, TensorBoard summaries and rows of metrics.jsonl of training.

    Args:
        train_dir: where the files go.
        classifier: its weights are shown as histograms.
        learning_rate: function from the number of steps done to the learning rate of the next.
        plan: how many examples the steps take.
        growth: of the pictures; None: they do not grow.

    Attributes:
        rows: those of metrics.jsonl.
    """

    def __init__(
        self,
        train_dir: str,
        classifier: Classifier,
        learning_rate: Callable[[int], tf.Tensor],
        plan: Plan,
        growth: augmentation.SizeSchedule | None,
    ):
        self.train_dir = train_dir
        self.rows = metrics_file.MetricsFile(train_dir)
        self.learning_rate = learning_rate
        self._classifier = classifier
        self._plan = plan
        self._growth = growth
        self._last_clock = (0, 0.0, 0.0)

    @functools.cached_property
    def _writer(self) -> tf.summary.SummaryWriter:
        return event_files.make_writer(self.train_dir)  # Not before there is something to write.

    def log_run(self, record: dict) -> None:
        """Writes the flags and hyperparameters of a run that begins."""
        self._writer.set_as_default(0)
        summaries.write_run(record, self.train_dir)

    def log_step(self, step: int, outputs: StepOutputs, trainer: Trainer) -> None:
        """Logs a step and writes its scalars.

        Args:
            step: the number of steps done.
            outputs: of the last of them.
            trainer: how long its steps took.

        Raises:
            UserError: if the loss's probability() gives something else than probabilities.
        """
        probabilities, labels = _whole(outputs.probabilities), _whole(outputs.labels)
        eval_util.check_probabilities(probabilities, self._classifier.spec.label_loss)
        both_probabilities, both_labels = eval_util.as_two_columns(probabilities), eval_util.as_two_columns(labels)
        hit_at_one = eval_util.calculate_hit_at_one(probabilities, labels)
        perr = eval_util.calculate_precision_at_equal_recall_rate(both_probabilities, both_labels)
        gap = eval_util.calculate_gap(both_probabilities, both_labels)
        clock = (trainer.timed_steps, trainer.seconds, trainer.waiting_seconds)
        timed_steps, seconds, waiting = (now - then for now, then in zip(clock, self._last_clock, strict=True))
        num_examples = self._plan.examples_at(step) - self._plan.examples_at(step - timed_steps)
        seconds = max(seconds, 1e-9)  # Clocks of some systems tick slowly.
        examples_per_second, data_wait = num_examples / seconds, waiting / seconds
        self._last_clock = clock
        learning_rate = float(self.learning_rate(step - 1))
        steps_left = self._growth.steps_left(step) if self._growth else self._plan.total_steps - step
        logging.info(
            "training step %d | Loss: %.2f Examples/sec: %.2f | Hit@1: %.2f PERR: %.2f GAP: %.2f | Epoch: %d/%d (%d%%) "
            "LR: %.3g | %s left | Waiting for data: %.0f%%",
            *(step, outputs.label_loss, examples_per_second, hit_at_one, perr, gap),
            *(self._plan.epoch_of(step), self._plan.epoch_of(self._plan.total_steps)),
            *(100 * step // self._plan.total_steps, learning_rate),
            *(datetime.timedelta(seconds=round(steps_left * seconds / timed_steps)), 100 * data_wait),
        )
        self.rows.add(
            "training",
            step=step,
            epoch=self._plan.epoch_of(step),
            label_loss=outputs.label_loss,
            regularization_loss=outputs.regularization_loss,
            gradient_norm=outputs.gradient_norm,
            accuracy=hit_at_one,
            perr=perr,
            gap=gap,
            learning_rate=learning_rate,
            examples_per_second=examples_per_second,
            waiting_for_data=data_wait,
        )
        self._writer.set_as_default(step)
        tf.summary.scalar("model/Training_Hit@1", hit_at_one)
        tf.summary.scalar("model/Training_Perr", perr)
        tf.summary.scalar("model/Training_GAP", gap)
        # Under the tags that evaluations have, too, so that one chart shows both.
        tf.summary.scalar("Compare/accuracy", hit_at_one)
        tf.summary.scalar("Compare/loss", outputs.label_loss)
        tf.summary.scalar("global_step/Examples/Second", examples_per_second)
        tf.summary.scalar("global_step/Waiting_For_Data", data_wait)
        tf.summary.scalar("label_loss", outputs.label_loss)
        tf.summary.scalar("reg_loss", outputs.regularization_loss)
        tf.summary.scalar("gradient_norm", outputs.gradient_norm)
        summaries.write_gradient_norms(list(outputs.gradient_norms.values()))
        tf.summary.scalar("learning_rate", learning_rate)

    def log_photos(self, step: int, outputs: StepOutputs) -> None:
        """Writes some of the pictures that a step was given."""
        self._writer.set_as_default(step)
        images = np.concatenate([part[:16].numpy() for part in outputs.images])[:16]
        labels, probabilities = _whole(outputs.labels), _whole(outputs.probabilities)
        summaries.write_training_photos(images, labels[: len(images)], probabilities[: len(images)])

    def log_weights(self, step: int, outputs: StepOutputs) -> None:
        """Writes histograms of the weights and of the input."""
        self._writer.set_as_default(step)
        tf.summary.histogram("model/input_raw", readers.scale_images(tf.concat(outputs.images, axis=0)))
        for weight in self._classifier.model.weights:
            tf.summary.histogram(weight.path, weight.value)

    def flush(self) -> None:
        """Makes sure that what was written is in the files."""
        self._writer.flush()
        self.rows.flush()


def _whole(parts: list[tf.Tensor]) -> np.ndarray:
    return np.concatenate([part.numpy() for part in parts])


@dataclasses.dataclass(frozen=True)
class Periods:
    """When things are due, besides at the end; 0: only then. `save` is in seconds, the others in steps.

    `profile` are the steps between which a profile is recorded.
    """

    log: int
    evaluate: int
    save: float
    export: int
    profile: tuple[int, ...] = ()

    def steps_until_due(self, step: int, total_steps: int) -> int:
        """Returns how many steps there are from `step` to the next one at which something is due."""
        due = [step + period - step % period for period in (self.log, self.evaluate, self.export) if period]
        return min(after for after in (total_steps, *due, *self.profile) if after > step) - step


class Evaluation:
    """Evaluates while training, and keeps the best model.

    Args:
        reader: how to read a record.
        shards: what to evaluate on.
        predictor: calculates in float32, for pictures of one size; perhaps the classifier that is trained.
        classifier: is trained.
        progress: notes how evaluations went.
        train_dir: metrics and summaries go to its folder eval, the best model to its folder best.
        may_cache: whether decoded pictures may stay in memory, if they take at most a quarter of what is free.
        early_stop_evals: how many evaluations without a lower loss than the best end training; 0: none.
        cluster: evaluates on the devices of this process.
        rows: gets one of each evaluation.
    """

    def __init__(
        self,
        reader: readers.BaseReader,
        shards: readers.Shards,
        predictor: Classifier,
        classifier: Classifier,
        progress: checkpoints.Progress,
        train_dir: str,
        may_cache: bool,
        early_stop_evals: int,
        cluster: distribution.Cluster,
        rows: metrics_file.MetricsFile,
    ):
        self._cluster = cluster
        self._rows = rows
        self._reader = reader
        self._shards = shards
        self._eval_dir = os.path.join(train_dir, "eval")
        self._best_dir = os.path.join(train_dir, "best")
        self._may_cache = may_cache
        self._predictor = predictor
        self._classifier = classifier
        self._progress = progress
        self._early_stop_evals = early_stop_evals

    @functools.cached_property
    def _evaluator(self) -> eval_script.Evaluator:
        batches = readers.make_dataset(self._reader, self._shards, batch_size=1024)
        # Not before the first evaluation, when the pictures to train on are in memory and no longer count as free.
        if self._may_cache and readers.decoded_bytes(self._reader, self._shards) <= utils.free_memory() / 4:
            batches = batches.cache()
        writer = event_files.make_writer(self._eval_dir)
        return eval_script.Evaluator(self._predictor, self._cluster, batches, writer, shows_batches=False)

    @property
    def has_stopped_improving(self) -> bool:
        """Whether it is time to stop early."""
        return 0 < self._early_stop_evals <= int(self._progress.worse_in_a_row)

    def is_missing(self, step: int) -> bool:
        """Whether there was no evaluation of this step."""
        return int(self._progress.evaluated) < step

    def run(self, step: int, stop: StopRequest, is_last: bool) -> None:
        """Evaluates the present weights, unless asked to stop meanwhile.

        Pictures are written only of the best model so far and of the last: they are larger than all the rest.
        """
        self._predictor.copy_weights(self._classifier)
        with bad_examples.named_errors(self._reader, self._shards):
            metrics = self._evaluator.evaluate(step, should_stop=lambda: bool(stop))
        if metrics is None:
            return
        files.write_json(os.path.join(self._eval_dir, f"metrics-{step}.json"), metrics)
        self._rows.add("evaluation", **metrics)
        progress = self._progress
        progress.evaluated.assign(step)
        is_best = metrics["avg_loss"] < float(progress.best_loss)
        if is_best:
            progress.best_loss.assign(metrics["avg_loss"])
            progress.best_step.assign(step)
            progress.worse_in_a_row.assign(0)
            tf.summary.scalar("Compare/best_accuracy", metrics["avg_hit_at_one"], step)
            tf.summary.scalar("Compare/best_loss", metrics["avg_loss"], step)
            checkpoints.save_best(self._predictor, self._best_dir, step, metrics)
        else:
            progress.worse_in_a_row.assign_add(1)
        if is_best or is_last or self.has_stopped_improving:
            self._evaluator.show_pictures(step)
        self._evaluator.flush()
        logging.info("best so far: step %d, Avg_Loss: %.4f", int(progress.best_step), float(progress.best_loss))
        if self.has_stopped_improving:
            logging.info("%d evaluations without a lower loss: training stops early.", self._early_stop_evals)


def train_loop(
    trainer: Trainer,
    batches: Iterator,
    checkpoint: checkpoints.TrainingCheckpoint,
    report: Report,
    evaluation: Evaluation | None,
    export: Callable[[int], None],
    total_steps: int,
    periods: Periods,
    stop: StopRequest,
    cluster: distribution.Cluster,
) -> bool:
    """Trains until `total_steps`: step, log, evaluate, save, export, each when it is due.

    What a step is due to log and evaluate is written before its checkpoint, and what is later than the checkpoint is
    taken back when a run goes on from there: so a run that was killed leaves no gap and nothing twice.

    Of several workers all take the steps, and the chief does the rest.

    Args:
        trainer: takes the steps.
        batches: iterator over batches, from the checkpoint's step on.
        checkpoint: saves; its progress counts the steps done.
        report: logs and writes summaries.
        evaluation: evaluates while training; None: there is none.
        export: exports the model at a step, unless it is there already.
        total_steps: the step to stop at.
        periods: when things are due.
        stop: ends training after the step that is being done.
        cluster: on which devices it trains.

    Returns:
        Whether training was stopped, on this worker or another.

    Raises:
        UserError: if the loss or a gradient is not finite any more, train_dir cannot be written to, or another worker
            was lost.
    """
    step, last_save = int(checkpoint.progress.step), time.monotonic()
    is_chief = cluster.is_chief

    def at_end() -> bool:
        return step >= total_steps or stops_early

    def is_due(period: int) -> bool:
        return period > 0 and step % period == 0

    def agree() -> tuple[bool, bool]:
        """Whether any worker was asked to stop, and whether the chief's evaluations say to stop early."""
        return tuple(cluster.any_worker(bool(stop), evaluation is not None and evaluation.has_stopped_improving))

    # What the run before this one could not do any more at its last checkpoint.
    with files.explain_write_errors(report.train_dir, "train_dir"):
        if step and evaluation and evaluation.is_missing(step) and (is_due(periods.evaluate) or step >= total_steps):
            evaluation.run(step, stop, is_last=step >= total_steps)
            report.rows.flush()
        is_stopped, stops_early = agree()
        if step and is_chief and (is_due(periods.export) or at_end()):
            export(step)

    while not at_end() and not is_stopped:
        if is_chief and step in periods.profile[:1]:
            tf.profiler.experimental.start(report.train_dir)
        outputs = trainer.run_steps(batches, periods.steps_until_due(step, total_steps))
        step += outputs.num_steps
        check_finite(step, outputs, report.learning_rate)
        checkpoint.progress.step.assign(step)
        if is_chief and step in periods.profile[1:]:
            tf.profiler.experimental.stop()

        with files.explain_write_errors(report.train_dir, "train_dir"):
            is_logged = is_due(periods.log) or step == total_steps
            is_first = is_logged and step <= periods.log  # Also of a run that goes on from before it.
            if is_chief and is_logged:
                report.log_step(step, outputs, trainer)
            if is_chief and is_first:
                report.log_photos(step, outputs)
            save_is_due = step == total_steps or 0 < periods.save <= time.monotonic() - last_save
            if evaluation and (is_due(periods.evaluate) or save_is_due):
                evaluation.run(step, stop, is_last=step >= total_steps)
                save_is_due = True
            is_stopped, stops_early = agree()
            if is_chief and (is_first or is_due(periods.export) or at_end()):
                report.log_weights(step, outputs)
            if is_chief and (save_is_due or is_stopped):
                report.flush()
                checkpoint.save()
                last_save = time.monotonic()
            if is_chief and (is_due(periods.export) or at_end()) and not is_stopped:
                export(step)
    cluster.sync()  # For the chief to have written everything.
    return is_stopped


def check_finite(step: int, outputs: StepOutputs, learning_rate: Callable[[int], tf.Tensor]) -> None:
    """Raises UserError if the loss or a gradient of the step that brought training to `step` is not finite."""
    if outputs.is_finite:
        return
    # Of a loss that is not finite no gradient is; else it helps to know where it began.
    culprits = [path for path, norm in outputs.gradient_norms.items() if not math.isfinite(norm)]
    of_which = f" (not finite for {', '.join(culprits[:3])})" if len(culprits) < len(outputs.gradient_norms) else ""
    raise utils.UserError(
        f"not finite any more between step {step - 1} and step {step}: the loss is {outputs.label_loss:.4g}, the "
        f"regularization loss {outputs.regularization_loss:.4g}, the norm of the gradients {outputs.gradient_norm:.4g} "
        f"(the largest before: {outputs.largest_gradient_norm:.4g}){of_which}, the learning rate "
        f"{float(learning_rate(step - 1)):.4g}; training stopped, nothing of it was saved, and the last checkpoint is "
        "as it was; try a lower --base_learning_rate, --warmup_examples, or a lower --clip_gradient_norm, and see "
        "whether the last layer of the model suits the loss"
    )


def check_train_dir(train_dir: str, spec: ModelSpec, start_new_model: bool) -> bool:
    """Makes sure that train_dir can be used for a model, before anything in it is changed.

    Args:
        train_dir: where to train.
        spec: the model to train.
        start_new_model: whether a model that is there will be deleted.

    Returns:
        Whether there is a model to go on with, perhaps without a checkpoint.

    Raises:
        UserError: if it cannot be written to, holds another model, or may not be deleted.
    """
    if start_new_model:
        checkpoints.own_files(train_dir)
        return False
    if not tf.io.gfile.exists(checkpoints.model_flags_path(train_dir)):
        if tf.train.latest_checkpoint(train_dir):
            raise utils.UserError(
                f"--train_dir={train_dir}: holds checkpoints that are not of this kit (no model_flags.json); name "
                "another train_dir"
            )
        return False
    stored = checkpoints.load_spec(train_dir)
    for field in dataclasses.fields(ModelSpec):
        now, then = getattr(spec, field.name), getattr(stored, field.name)
        if now != then:
            raise utils.UserError(
                f"--{field.name}={now}: the model in --train_dir={train_dir} has {field.name}={then}; give the same to "
                "go on, or --start_new_model to delete it, or another --train_dir"
            )
    return True


def main() -> None:
    logging.info("Tensorflow version: %s.", tf.__version__)
    spec = ModelSpec(
        model=FLAGS.model,
        model_params=utils.parse_json_flag(FLAGS.model_params, "model_params"),
        label_loss=FLAGS.label_loss,
        loss_params=utils.parse_json_flag(FLAGS.loss_params, "loss_params"),
        image_size=FLAGS.image_size,
        resize_method=FLAGS.resize_method,
    )
    spec.classes()  # Wrong names are said before anything is read or written.
    optimizers.check_name(FLAGS.optimizer)
    utils.parse_json_flag(FLAGS.optimizer_params, "optimizer_params")
    parse_profile_steps(FLAGS.profile_steps)
    if FLAGS.first_image_size > FLAGS.image_size:
        raise utils.UserError(
            f"--first_image_size={FLAGS.first_image_size}: pictures grow to --image_size={FLAGS.image_size}; give a "
            "smaller first size, or a larger image_size"
        )
    if FLAGS.early_stop_evals and not FLAGS.eval_data_pattern:
        raise utils.UserError(f"--early_stop_evals={FLAGS.early_stop_evals}: needs --eval_data_pattern; give it")
    tf.debugging.set_log_device_placement(FLAGS.log_device_placement)
    if FLAGS.deterministic:
        tf.config.experimental.enable_op_determinism()
    cluster = distribution.join_cluster()
    with cluster.explain_lost_workers():
        train_on(cluster, spec)


def train_on(cluster: distribution.Cluster, spec: ModelSpec) -> None:
    """The part of main that all workers of a cluster do together."""
    if cluster.is_chief:
        files.make_output_folder(FLAGS.train_dir, "train_dir")
        checkpoints.lock(FLAGS.train_dir)
        has_model = check_train_dir(FLAGS.train_dir, spec, FLAGS.start_new_model)

    # The data.
    pattern = FLAGS.train_data_pattern or sample_data.pattern("train")
    if not FLAGS.train_data_pattern:
        logging.info("No --train_data_pattern given: using the kit's own sample set, %s", pattern)
    reader = readers.get_reader(True, spec.image_size, spec.resize_method)
    shards = bad_examples.open_shards(pattern, "train_data_pattern", reader, FLAGS.bad_examples)
    eval_shards = None
    if FLAGS.eval_data_pattern and cluster.is_chief:
        eval_shards = bad_examples.open_shards(FLAGS.eval_data_pattern, "eval_data_pattern", reader, FLAGS.bad_examples)

    # The model, and how many steps it trains.
    plan = Plan(
        num_examples=shards.num_examples,
        batch_size=FLAGS.batch_size * cluster.num_replicas,
        num_epochs=FLAGS.num_epochs,
        max_steps=FLAGS.max_steps,
    )
    learning_rate = optimizers.LearningRate(
        FLAGS.base_learning_rate,
        plan.batch_size,
        FLAGS.learning_rate_schedule,
        FLAGS.learning_rate_decay,
        FLAGS.learning_rate_decay_examples,
        FLAGS.warmup_examples,
        plan.total_steps,
    )
    growth = None
    if 0 < FLAGS.first_image_size < spec.image_size:
        growth = augmentation.SizeSchedule(FLAGS.first_image_size, FLAGS.image_size, plan.total_steps)
        check_first_size(spec, FLAGS.first_image_size)
    is_new = FLAGS.start_new_model or checkpoints.newest_checkpoint(FLAGS.train_dir) is None
    is_new = bool(
        cluster.broadcast_from_chief(int(is_new))
    )  # All make the same variables, or they wait for each other.
    with cluster.strategy.scope():
        classifier = Classifier(spec, FLAGS.seed, FLAGS.precision, is_new, any_size=growth is not None)
        optimizer = optimizers.make_optimizer(
            FLAGS.optimizer,
            learning_rate,
            classifier.model.trainable_variables,
            FLAGS.clip_gradient_norm / cluster.num_replicas,  # Each replica gives its part of the gradient.
            scale_loss=FLAGS.precision == "mixed_float16",
            params=utils.parse_json_flag(FLAGS.optimizer_params, "optimizer_params"),
        )
        predictor = classifier if FLAGS.precision == "float32" and not growth else Classifier(spec)
    num_parameters = sum(math.prod(weight.shape) for weight in classifier.model.weights)
    flag_values = {flag.name: flag.value for flag in FLAGS.get_flags_for_module(sys.argv[0])}
    record = run_record.make(flag_values, shards.records, num_parameters, cluster.num_replicas)

    # Nothing in train_dir was changed up to here; now all that can be known to be wrong is known.
    if FLAGS.start_new_model and cluster.is_chief:
        logging.info("Flag 'start_new_model' is set. Building a new model.")
        checkpoints.delete_training(FLAGS.train_dir)
    checkpoint = checkpoints.TrainingCheckpoint(FLAGS.train_dir, classifier, optimizer, FLAGS.keep_checkpoints)
    cluster.sync()  # For the chief to have deleted it.
    restored = checkpoint.restore_latest()
    start_step = int(checkpoint.progress.step)
    check_same_as_chief(cluster, record, start_step, FLAGS.train_dir)
    report, evaluation = Report(FLAGS.train_dir, classifier, learning_rate, plan, growth), None
    if cluster.is_chief:
        if restored:
            run_record.warn_of_changes(FLAGS.train_dir, record)
        with files.explain_write_errors(FLAGS.train_dir, "train_dir"):
            checkpoints.delete_half_written(FLAGS.train_dir)
            if has_model:  # Else event files are not of this kit.
                event_files.cut(FLAGS.train_dir, start_step if restored else -1)
            checkpoints.save_spec(FLAGS.train_dir, spec)
            files.write_json(run_record.path_in(FLAGS.train_dir), record)
            bad_examples.write_list(shards, os.path.join(FLAGS.train_dir, "bad_examples.csv"))
            report.rows.cut(training=start_step, evaluation=int(checkpoint.progress.evaluated))
            if not restored:
                report.log_run(record)
    if eval_shards:
        eval_dir = os.path.join(FLAGS.train_dir, "eval")
        with files.explain_write_errors(FLAGS.train_dir, "train_dir"):
            files.make_output_folder(eval_dir, "train_dir")
            bad_examples.write_list(eval_shards, os.path.join(eval_dir, "bad_examples.csv"))
            event_files.cut(eval_dir, int(checkpoint.progress.evaluated))
        evaluation = Evaluation(
            reader,
            eval_shards,
            predictor,
            classifier,
            checkpoint.progress,
            FLAGS.train_dir,
            FLAGS.cache != "none",
            FLAGS.early_stop_evals,
            cluster,
            report.rows,
        )

    logging.info(f"{spec.model}: {num_parameters:,} parameters.")
    logging.info("Number of training files: %d.", len(shards.files))
    logging.info("Using batch size of %d for training.", plan.batch_size)
    logging.info(str(plan))
    if growth:
        logging.info(f"Training pictures grow: {growth}.")
    if eval_shards:
        logging.info("Evaluating on %d examples while training.", eval_shards.num_examples)
    logging.info(f"Going on from {restored}." if restored else "No checkpoint file found. Building a new model.")
    epochs_left = (plan.total_steps - start_step) / plan.steps_per_epoch
    if epochs_left <= 0:
        logging.info(
            "Nothing left to train: the model is at step %d, and training ends at %d. Raise %s, or pass "
            "--start_new_model.",
            *(start_step, plan.total_steps, "--max_steps" if plan.ends_at_max_steps else "--num_epochs"),
        )
    elif evaluation and evaluation.has_stopped_improving:
        epochs_left = 0
        logging.info(
            "Nothing left to train: training stopped early at step %d, the best was step %d. Raise --early_stop_evals, "
            "or pass --start_new_model.",
            *(start_step, int(checkpoint.progress.best_step)),
        )

    exporter = export_model.ModelExporter(predictor)

    def export(step: int) -> None:
        model_dir = export_model.export_path(FLAGS.train_dir, step)
        if step == start_step and export_model.is_exported(model_dir):
            return
        logging.info("Exporting the model at step %d to %s.", step, model_dir)
        predictor.copy_weights(classifier)
        exporter.export_model(model_dir)

    stop = StopRequest()
    has_gpu = bool(tf.config.list_logical_devices("GPU"))
    with bad_examples.named_errors(reader, shards):
        batches = readers.make_training_dataset(
            reader,
            shards,
            plan.batch_size,
            FLAGS.seed,
            FLAGS.num_epochs,
            start_step,
            FLAGS.num_readers,
            readers.decode_all(reader, shards) if use_cache(FLAGS.cache, reader, shards, epochs_left) else None,
            cluster.num_replicas,
            cluster.replicas,
            FLAGS.augment,
            growth,
        )
        # Inside of named_errors, which would look for a bad record in all shards when a worker is lost.
        with stop.listening(), cluster.explain_lost_workers():
            is_stopped = train_loop(
                Trainer(
                    classifier,
                    optimizer,
                    cluster.strategy,
                    FLAGS.regularization_penalty,
                    jit_compile={"on": True, "off": False, "auto": has_gpu}[FLAGS.jit_compile],
                    measures_waiting=not FLAGS.deterministic,  # TensorFlow then refuses to look at the clock.
                    stop=stop.requested,
                ),
                iter(cluster.distribute(batches)),
                checkpoint,
                report,
                evaluation,
                export,
                plan.total_steps,
                Periods(
                    log=FLAGS.log_steps,
                    evaluate=plan.steps_per_epoch if FLAGS.eval_data_pattern else 0,
                    save=FLAGS.save_checkpoint_secs,
                    export=FLAGS.export_model_steps,
                    profile=parse_profile_steps(FLAGS.profile_steps),
                ),
                stop,
                cluster,
            )
    if is_stopped:
        log_stop(int(checkpoint.progress.step))
        sys.exit(128 + (stop.signal_number or signal.SIGTERM))
    if evaluation:
        best_dir = os.path.join(FLAGS.train_dir, "best")
        logging.info("The best model, that of step %d, is in %s.", int(checkpoint.progress.best_step), best_dir)
    if cluster.is_chief:
        log_next_commands(FLAGS.train_dir, bool(FLAGS.train_data_pattern))


def check_first_size(spec: ModelSpec, first_size: int) -> None:
    """Makes sure that a model takes pictures as small as they are at first.

    Raises:
        UserError: if it does not.
    """
    try:
        Classifier(dataclasses.replace(spec, image_size=first_size))
    except utils.UserError as error:
        raise utils.UserError(f"--first_image_size={first_size}: pictures of that size do not do: {error}") from error


def check_same_as_chief(cluster: distribution.Cluster, record: dict, step: int, train_dir: str) -> None:
    """Makes sure that all workers do the same: otherwise they would wait for each other without end.

    Raises:
        UserError: if this worker has other flags or shards than the chief, or goes on from another step.
    """
    if cluster.broadcast_from_chief(run_record.fingerprint(record)) != run_record.fingerprint(record):
        raise utils.UserError(
            f"this is {cluster}: its flags, its shards or its version of TensorFlow are not the chief's; start all "
            "with the same"
        )
    chief_step = cluster.broadcast_from_chief(step)
    if step != chief_step:
        raise utils.UserError(
            f"--train_dir={train_dir}: the chief goes on from step {chief_step} there, this worker from step {step}; "
            "name a folder that all workers share, such as one on gs://"
        )


def parse_profile_steps(values: list[str]) -> tuple[int, ...]:
    """Returns the two steps of --profile_steps, or ().

    Raises:
        UserError: if it is neither empty nor two growing step numbers.
    """
    if values and not (len(values) == 2 and all(map(str.isdigit, values)) and int(values[0]) < int(values[1])):
        raise utils.UserError(f"--profile_steps={','.join(values)}: give two steps, the first the smaller: 10,20")
    return tuple(map(int, values))


def use_cache(cache: str, reader: readers.BaseReader, shards: readers.Shards, epochs_left: float) -> bool:
    """Returns whether to keep decoded pictures in memory, and logs why.

    Args:
        cache: "auto", "memory" or "none".
        reader: how to read a record.
        shards: what to read.
        epochs_left: how many epochs are still to be trained.
    """
    if cache == "none" or epochs_left <= 0:
        return False
    needed, free = readers.decoded_bytes(reader, shards), utils.free_memory()
    # Not how much is free: the same run twice has the same log.
    size, fits = f"{needed / 2**20:,.0f} MiB", needed <= free / 4
    if cache == "memory" or (epochs_left > 1 and fits):
        why = f"{size}, {'at most' if fits else 'more than'} a quarter of what is free"
        logging.info("Cache: pictures are decoded once and stay in memory (%s).", why)
        return True
    why = "only one epoch" if epochs_left <= 1 else f"{size}, more than a quarter of the memory that is free"
    logging.info("Cache: pictures are decoded in each epoch (%s).", why)
    return False


def log_stop(step: int) -> None:
    """Says where training was stopped, and what to type to go on."""
    arguments = [argument for argument in sys.argv if not re.match("--?start_new_model", argument)]
    logging.info("Stopped at step %d, which is saved. To go on: python %s", step, shlex.join(arguments))


def log_next_commands(train_dir: str, has_own_data: bool) -> None:
    """Says what to type next.

    Args:
        train_dir: where the model is.
        has_own_data: whether it was trained on something else than the sample set.
    """
    logging.info("Done training. The model is in %s. How to go on:", train_dir)
    where = "" if train_dir == utils.TRAIN_DIR else f" --train_dir={shlex.quote(train_dir)}"
    for script, data in (
        ("eval.py --run_once", " --eval_data_pattern='...'"),
        ("inference.py", " --input_data_pattern='...'"),
    ):
        path = os.path.join(os.path.dirname(sys.argv[0]), script)
        logging.info("  python %s%s%s", path, where, data if has_own_data else "")
    logging.info("  tensorboard --logdir=%s", shlex.quote(train_dir))


if __name__ == "__main__":
    utils.run_script(main, define_flags)
