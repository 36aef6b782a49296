"""Trains a model on TFRecord shards.

    python cats_vs_dogs/train.py --train_data_pattern='shards/train-*' --train_dir=/tmp/cvd_model --model=LogisticModel

Started again with the same flags, it resumes from the newest checkpoint in train_dir.
"""

import os
import sys

if __package__ in (None, ""):  # Run as a file: import the package next to this file, from any folder.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    import cats_vs_dogs  # noqa: F401 - Sets what TensorFlow reads when it is imported.

from cats_vs_dogs import config, utils

if __name__ == "__main__":
    utils.read_flags(config.define_flags)  # Wrong flags are reported before TensorFlow is imported.
    utils.import_tensorflow()

import contextlib
import dataclasses
import functools
import math
import re
import shlex
import signal
from collections.abc import Callable, Iterator, Sequence

import keras
import tensorflow as tf
from absl import flags, logging

from cats_vs_dogs import (
    augmentation,
    bad_examples,
    checkpoints,
    distribution,
    export_model,
    files,
    optimizers,
    readers,
    sample_data,
    train_dir,
    training_log,
)
from cats_vs_dogs.classifier import Classifier, find_classes, seeded
from cats_vs_dogs.config import Config
from cats_vs_dogs.distribution import Cluster
from cats_vs_dogs.evaluation import Evaluator
from cats_vs_dogs.interruption import Alarm, StopRequest
from cats_vs_dogs.plan import Plan
from cats_vs_dogs.prediction import Predictor
from cats_vs_dogs.trainer import Profiler, StepOutputs, Trainer
from cats_vs_dogs.training_evaluation import NoEvaluation, TrainingEvaluation


def main() -> None:
    """Trains what the flags name. The one place that reads FLAGS."""
    logging.info("Tensorflow version: %s.", tf.__version__)
    settings = config.read(flags.FLAGS)
    tf.debugging.set_log_device_placement(settings.system.log_device_placement)
    if settings.system.deterministic:
        tf.config.experimental.enable_op_determinism()
    find_classes(settings.model)
    cluster = distribution.join_cluster()
    with cluster.explain_lost_workers():
        stop_signal = train(settings, cluster)
    if stop_signal:
        sys.exit(128 + stop_signal)


def train(settings: Config, cluster: Cluster) -> int | None:
    """Trains a model: looks at everything, prepares train_dir, runs.

    All workers of a cluster do this together.

    Args:
        settings: what to train, on what, and how.
        cluster: the devices to train on.

    Returns:
        The number of the signal that stopped training; None if it came to its end.

    Raises:
        UserError: if a setting, the data or train_dir is not right, training diverges, or a worker is lost.
    """
    with seeded(settings.system.seed), contextlib.ExitStack() as stack:
        if cluster.is_chief:
            files.make_output_folder(settings.train_dir, "train_dir")
            stack.callback(_close, train_dir.lock(settings.train_dir))
        job = look(settings, cluster)
        # All checks have passed; train_dir is changed from here on.
        prepare(job)
        return run(job)


def _close(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)


@dataclasses.dataclass(frozen=True)
class Job:
    """What a run consists of, built from its settings.

    Attributes:
        settings: of the run.
        cluster: the devices to train on.
        reader: how to read a record.
        shards: what to train on.
        eval_shards: what to evaluate on; None: no evaluation on this worker.
        plan: how many steps there are.
        learning_rate: a function of the step.
        sizes: the sizes of training pictures by step; None: one size.
        classifier: what is trained.
        optimizer: built for the classifier.
        predictor: the same model for evaluation and export, in float32, for pictures of one size.
        state: everything that is needed to resume.
        has_model: whether train_dir holds a model to resume, perhaps without a checkpoint.
        record: what run.json will hold.
    """

    settings: Config
    cluster: Cluster
    reader: readers.BaseReader
    shards: readers.Shards
    eval_shards: readers.Shards | None
    plan: Plan
    learning_rate: optimizers.LearningRate
    sizes: augmentation.SizeSchedule | None
    classifier: Classifier
    optimizer: keras.optimizers.Optimizer
    predictor: Classifier
    state: checkpoints.TrainState
    has_model: bool
    record: dict


# ---- 1. Look: everything that can be wrong is found here, and nothing is changed.


def look(settings: Config, cluster: Cluster) -> Job:
    """Checks train_dir and the data, plans the steps, builds model and optimizer. Changes nothing in train_dir."""
    has_model = cluster.is_chief and train_dir.check(settings.train_dir, settings)
    data = settings.data
    reader = readers.get_reader(True, settings.model.image_size, settings.model.resize_method)
    pattern = data.train_data_pattern
    if not pattern:
        pattern = sample_data.pattern("train")
        logging.info("No --train_data_pattern given: using the kit's own sample set, %s", pattern)
    shards = bad_examples.open_shards(pattern, "train_data_pattern", reader, data.bad_examples)
    eval_shards = None
    if data.eval_data_pattern and cluster.is_chief:
        eval_shards = bad_examples.open_shards(data.eval_data_pattern, "eval_data_pattern", reader, data.bad_examples)
    batch_size = data.batch_size * cluster.num_replicas
    plan = Plan(shards.num_examples, batch_size, settings.periods, bool(data.eval_data_pattern))
    rates = settings.optimizer
    learning_rate = optimizers.LearningRate(
        rates.base_learning_rate,
        batch_size,
        rates.learning_rate_schedule,
        rates.learning_rate_decay,
        rates.learning_rate_decay_examples,
        rates.warmup_examples,
        plan.total_steps,
    )
    sizes = make_size_schedule(settings, plan)
    is_new = settings.start_new_model or checkpoints.newest_checkpoint(settings.train_dir) is None
    is_new = bool(cluster.broadcast_from_chief(int(is_new)))  # All create the same variables, or wait for each other.
    with cluster.strategy.scope():
        classifier, optimizer, predictor = build(settings, learning_rate, is_new, sizes is not None)
    return Job(
        settings=settings,
        cluster=cluster,
        reader=reader,
        shards=shards,
        eval_shards=eval_shards,
        plan=plan,
        learning_rate=learning_rate,
        sizes=sizes,
        classifier=classifier,
        optimizer=optimizer,
        predictor=predictor,
        state=checkpoints.TrainState(settings.train_dir, classifier, optimizer, settings.periods.keep_checkpoints),
        has_model=has_model,
        record=train_dir.make_record(settings, shards.records, classifier.num_parameters, cluster.num_replicas),
    )


def make_size_schedule(settings: Config, plan: Plan) -> augmentation.SizeSchedule | None:
    """Returns the sizes of training pictures by step; None if they do not grow.

    Raises:
        UserError: if the model does not take the first size.
    """
    first_size, last_size = settings.data.first_image_size, settings.model.image_size
    if not 0 < first_size < last_size:
        return None
    try:
        Classifier(dataclasses.replace(settings.model, image_size=first_size))
    except utils.UserError as error:
        raise utils.UserError(f"--first_image_size={first_size}: the model does not take that size: {error}") from error
    return augmentation.SizeSchedule(first_size, last_size, plan.total_steps)


def build(
    settings: Config, learning_rate: optimizers.LearningRate, is_new: bool, any_size: bool
) -> tuple[Classifier, keras.optimizers.Optimizer, Classifier]:
    """Builds the model to train, its optimizer, and the model to evaluate and export.

    Args:
        settings: name the model, the loss and the optimizer.
        learning_rate: a function of the step.
        is_new: whether training starts with this model, and no checkpoint will be restored.
        any_size: whether training pictures have several sizes.
    """
    precision, seed = settings.system.precision, settings.system.seed
    classifier = Classifier(settings.model, seed, precision, is_new, any_size)
    optimizer = optimizers.make_optimizer(
        settings.optimizer.optimizer,
        learning_rate,
        classifier.model.trainable_variables,
        scale_loss=precision == "mixed_float16",
        params=settings.optimizer.optimizer_params,
    )
    serves_both = precision == "float32" and not any_size
    return classifier, optimizer, classifier if serves_both else Classifier(settings.model, seed)


# ---- 2. Prepare: train_dir becomes that of this run, at the step to continue from.


def prepare(job: Job) -> None:
    """Deletes the old model if asked, restores the newest readable state, rewinds newer records, writes run.json."""
    folder, cluster = job.settings.train_dir, job.cluster
    if job.settings.start_new_model and cluster.is_chief:
        logging.info("Flag 'start_new_model' is set. Building a new model.")
        train_dir.delete_model(folder)
    cluster.sync()  # The chief has deleted it.
    restored = job.state.restore()
    check_same_as_chief(cluster, job.record, job.state.step, folder)
    if cluster.is_chief:
        if restored:
            train_dir.warn_of_changes(folder, job.record)
        with files.explain_write_errors(folder, "train_dir"):
            train_dir.delete_leftovers(folder)
            if job.has_model:  # Otherwise event files are another program's.
                job.state.rewind(is_resumed=restored is not None)
            train_dir.save_spec(folder, job.settings.model)
            train_dir.save_record(folder, job.record)
            bad_examples.write_bad_examples(job.shards, os.path.join(folder, "bad_examples.csv"))
            if job.eval_shards:
                files.make_output_folder(train_dir.eval_dir(folder), "train_dir")
                bad_examples.write_bad_examples(
                    job.eval_shards, os.path.join(train_dir.eval_dir(folder), "bad_examples.csv")
                )
    log_job(job, restored)


def check_same_as_chief(cluster: Cluster, record: dict, step: int, folder: str) -> None:
    """Checks that all workers do the same: otherwise they would wait for each other without end.

    Raises:
        UserError: if this worker has other settings or shards than the chief, or resumes from another step.
    """
    fingerprint = train_dir.fingerprint(record)
    if cluster.broadcast_from_chief(fingerprint) != fingerprint:
        raise utils.UserError(
            f"this is {cluster}: its flags, its shards or its version of TensorFlow are not the chief's; start all "
            "with the same"
        )
    chief_step = cluster.broadcast_from_chief(step)
    if step != chief_step:
        raise utils.UserError(
            f"--train_dir={folder}: the chief resumes from step {chief_step} there, this worker from step {step}; "
            "name a folder that all workers share, such as one on gs://"
        )


def log_job(job: Job, restored: str | None) -> None:
    """Logs what will be trained, on what."""
    logging.info(f"{job.settings.model.model}: {job.classifier.num_parameters:,} parameters.")
    logging.info("Number of training files: %d.", len(job.shards.files))
    logging.info("Using batch size of %d for training.", job.plan.batch_size)
    logging.info(str(job.plan))
    if job.sizes:
        logging.info(f"Training pictures grow: {job.sizes}.")
    if job.eval_shards:
        logging.info("Evaluating on %d examples while training.", job.eval_shards.num_examples)
    logging.info(f"Going on from {restored}." if restored else "No checkpoint file found. Building a new model.")


# ---- 3. Run: the loop, and what to type next.


@dataclasses.dataclass(frozen=True)
class Tools:
    """What the loop works with. On workers other than the chief, those that write do nothing."""

    trainer: Trainer
    batches: Iterator
    log: training_log.TrainingLog
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

    def __init__(self, state: checkpoints.TrainState, log: training_log.TrainingLog, alarm: Alarm):
        self._state = state
        self._log = log
        self._alarm = alarm

    def is_due(self) -> bool:
        """Whether --save_checkpoint_secs have passed."""
        return self._alarm.is_due()

    def save(self) -> None:
        """Saves, and starts to count the time to the next checkpoint."""
        self._log.flush()
        self._state.save()
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
        self._exporter = export_model.ModelExporter(predictor)

    def export(self, step: int, is_replaced: bool = True) -> None:
        """Exports the model as that of a step; with `is_replaced` False, only if it is not there yet."""
        model_dir = train_dir.export_dir(self._folder, step)
        if not is_replaced and export_model.is_exported(model_dir):
            return
        logging.info("Exporting the model at step %d to %s.", step, model_dir)
        files.make_dirs(os.path.dirname(model_dir))
        self._predictor.copy_weights(self._classifier)
        self._exporter.export_model(model_dir)


def run(job: Job) -> int | None:
    """Trains until the last step or until asked to stop; returns the number of the signal that asked."""
    folder, is_chief = job.settings.train_dir, job.cluster.is_chief
    log = evaluation = saver = exporter = profiler = Nothing()
    stop, alarm = StopRequest(), Alarm(job.settings.periods.save_checkpoint_secs if is_chief else 0)
    if is_chief:
        log = training_log.TrainingLog(folder, job.classifier, job.learning_rate, job.plan, job.sizes)
        saver, exporter = Saver(job.state, log, alarm), Exporter(folder, job.classifier, job.predictor)
        profiler = Profiler(folder, job.settings.periods.profile_steps)
        if not job.state.step:
            with files.explain_write_errors(folder, "train_dir"):
                log.start(job.record)
    evaluation = make_evaluation(job, log)
    epochs_left = 0 if evaluation.has_stopped_improving else job.plan.epochs_left(job.state.step)
    log_if_nothing_is_left(job, evaluation)
    with (
        bad_examples.explain_read_errors(job.reader, job.shards),
        contextlib.closing(profiler),
        contextlib.closing(alarm),
    ):
        batches = iter(job.cluster.distribute(make_batches(job, epochs_left)))
        trainer = make_trainer(job, (stop.requested, alarm.variable))
        tools = Tools(trainer, batches, log, evaluation, saver, exporter, profiler, stop)
        # Inside of explain_read_errors, which would otherwise look for a bad record when a worker is lost.
        with stop.listening(), job.cluster.explain_lost_workers():
            alarm.restart()
            is_stopped = loop(job, tools)
    if is_stopped:
        log_stop(job.state.step)
        return stop.signal_number or signal.SIGTERM
    evaluation.log_best()
    if is_chief:
        log_next_commands(folder, bool(job.settings.data.train_data_pattern))
    return None


def loop(job: Job, tools: Tools) -> bool:
    """Trains until the last step: takes steps, then logs, evaluates, saves and exports, each when it is due.

    What a step is due to log and evaluate is written before its checkpoint. On resume, records newer than the
    checkpoint are removed, so no step is missing or logged twice.

    Returns:
        Whether training was stopped, on this worker or another.
    """
    plan, state, step = job.plan, job.state, job.state.step
    is_stopped, is_done = finish_last_step(job, tools)
    while not is_done and not is_stopped:
        tools.profiler.update(step)
        tools.saver.is_due()  # If so, the steps are interrupted after the first.
        outputs = tools.trainer.run_steps(tools.batches, plan.steps_until_due(step))
        step += outputs.num_steps
        check_finite(step, outputs, float(job.learning_rate(step - 1)))
        state.progress.step.assign(step)
        tools.profiler.update(step)
        with files.explain_write_errors(job.settings.train_dir, "train_dir"):
            is_stopped, is_done = write(job, tools, step, outputs)
    job.cluster.sync()  # The chief has written everything.
    return is_stopped


def write(job: Job, tools: Tools, step: int, outputs: StepOutputs) -> tuple[bool, bool]:
    """Writes what is due after a step; returns whether training was stopped, and whether it is done."""
    plan, is_last = job.plan, step >= job.plan.total_steps
    saves = is_last or tools.saver.is_due() or plan.evaluation_is_due(step)
    if plan.log_is_due(step):
        tools.log.log_step(step, outputs, tools.trainer)
    if saves:
        tools.evaluation.run(step, is_last, lambda: bool(tools.stop))
    is_stopped, is_done = sync(job, tools, step)
    exports = plan.export_is_due(step) or is_done
    if exports:
        tools.log.log_weights(step, outputs)
    if saves or is_stopped:
        tools.saver.save()
    if exports and not is_stopped:
        tools.exporter.export(step)
    return is_stopped, is_done


def finish_last_step(job: Job, tools: Tools) -> tuple[bool, bool]:
    """Writes what the run before this one did not after its last checkpoint; returns the same as `write`."""
    plan, step = job.plan, job.state.step
    with files.explain_write_errors(job.settings.train_dir, "train_dir"):
        if step and tools.evaluation.is_missing(step) and plan.evaluation_is_due(step):
            tools.evaluation.run(step, step >= plan.total_steps, lambda: bool(tools.stop))
            tools.log.flush()
        is_stopped, is_done = sync(job, tools, step)
        if step and (plan.export_is_due(step) or is_done):
            tools.exporter.export(step, is_replaced=False)
    return is_stopped, is_done


def sync(job: Job, tools: Tools, step: int) -> tuple[bool, bool]:
    """Returns whether any worker was asked to stop, and whether training is done; all workers call it together."""
    is_stopped, stops_early = job.cluster.any_worker(bool(tools.stop), tools.evaluation.has_stopped_improving)
    return is_stopped, stops_early or step >= job.plan.total_steps


def check_finite(step: int, outputs: StepOutputs, learning_rate: float) -> None:
    """Checks that the loss and the gradients of a step are finite.

    Args:
        step: the number of steps done.
        outputs: those of the last of them.
        learning_rate: its learning rate.

    Raises:
        UserError: if they are not.
    """
    if outputs.is_finite:
        return
    # If the loss is not finite, no gradient is. Otherwise it helps to know where it began.
    culprits = [path for path, norm in outputs.gradient_norms.items() if not math.isfinite(norm)]
    where = f" (not finite for {', '.join(culprits[:3])})" if len(culprits) < len(outputs.gradient_norms) else ""
    raise utils.UserError(
        f"not finite any more between step {step - 1} and step {step}: the loss is {outputs.label_loss:.4g}, the "
        f"regularization loss {outputs.regularization_loss:.4g}, the norm of the gradients {outputs.gradient_norm:.4g} "
        f"(the largest before: {outputs.largest_gradient_norm:.4g}){where}, the learning rate {learning_rate:.4g}; "
        "training stopped and saved nothing of it, and the last checkpoint is unchanged; try a lower "
        "--base_learning_rate, --warmup_examples, or a lower --clip_gradient_norm, and check that the last layer of "
        "the model suits the loss"
    )


# ---- The parts of a run.


def make_trainer(job: Job, interrupts: Sequence[tf.Variable]) -> Trainer:
    """Returns what takes the steps."""
    num_gpus = len(tf.config.list_logical_devices("GPU"))
    # XLA cannot synchronise batch norm across devices.
    is_compiled = {"on": True, "off": False, "auto": num_gpus > 0 and job.cluster.num_replicas == 1}
    return Trainer(
        job.classifier,
        job.optimizer,
        job.cluster.strategy,
        job.settings.optimizer,
        is_compiled[job.settings.system.jit_compile],
        interrupts,
        measures_waiting=not job.settings.system.deterministic,
    )


def make_batches(job: Job, epochs_left: float) -> tf.data.Dataset:
    """Returns the batches of the run, from the step on that it resumes from."""
    data, seed, batch_size = job.settings.data, job.settings.system.seed, job.plan.batch_size

    def change(images: tf.Tensor, step: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        size = job.sizes.size_at(step) if job.sizes else None
        return augmentation.augment(images, data.augment, seed, step, rows, batch_size, size)

    is_cached = use_cache(data.cache, job.reader, job.shards, epochs_left)
    return readers.make_training_dataset(
        job.reader,
        job.shards,
        readers.Order(batch_size, seed, job.settings.periods.num_epochs, job.state.step, data.num_readers),
        readers.decode_all(job.reader, job.shards) if is_cached else None,
        job.cluster.num_replicas,
        job.cluster.replicas,
        change,
    )


def use_cache(cache: str, reader: readers.BaseReader, shards: readers.Shards, epochs_left: float) -> bool:
    """Returns whether to keep decoded pictures in memory, and logs why.

    Args:
        cache: "auto", "memory" or "none".
        reader: how to read a record.
        shards: what to read.
        epochs_left: how many epochs remain.
    """
    if cache == "none" or epochs_left <= 0:
        return False
    needed, free = readers.decoded_bytes(reader, shards), utils.free_memory()
    # Without the free memory itself: the same run twice has the same log.
    size, fits = f"{needed / 2**20:,.0f} MiB", needed <= free / 4
    if cache == "memory" or (epochs_left > 1 and fits):
        why = f"{size}, {'at most' if fits else 'more than'} a quarter of what is free"
        logging.info("Cache: pictures are decoded once and stay in memory (%s).", why)
        return True
    why = "only one epoch" if epochs_left <= 1 else f"{size}, more than a quarter of the free memory"
    logging.info("Cache: pictures are decoded in each epoch (%s).", why)
    return False


def make_evaluation(job: Job, log: training_log.TrainingLog) -> TrainingEvaluation | NoEvaluation:
    """Returns what evaluates while training."""
    if not job.eval_shards:
        return NoEvaluation()

    def make_evaluator() -> Evaluator:
        batches = readers.make_dataset(job.reader, job.eval_shards, batch_size=1024)
        needed = readers.decoded_bytes(job.reader, job.eval_shards)
        if job.settings.data.cache != "none" and needed <= utils.free_memory() / 4:
            batches = batches.cache()
        predictor = Predictor(job.predictor, job.cluster, batches, job.eval_shards.num_examples)
        explain_errors = functools.partial(bad_examples.explain_read_errors, job.reader, job.eval_shards)
        return Evaluator(predictor, explain_errors=explain_errors)

    return TrainingEvaluation(
        job.settings.train_dir,
        make_evaluator,
        job.predictor,
        job.classifier,
        job.state.progress,
        log.rows,
        job.settings.periods.early_stop_evals,
    )


# ---- Log lines.


def log_if_nothing_is_left(job: Job, evaluation: TrainingEvaluation | NoEvaluation) -> None:
    """Says why there is nothing to train, if so."""
    step, plan = job.state.step, job.plan
    if step >= plan.total_steps:
        logging.info(
            "Nothing left to train: the model is at step %d, and training ends at %d. Raise %s, or pass "
            "--start_new_model.",
            *(step, plan.total_steps, plan.last_step_flag),
        )
    elif evaluation.has_stopped_improving:
        logging.info(
            "Nothing left to train: training stopped early at step %d, the best was step %d. Raise --early_stop_evals, "
            "or pass --start_new_model.",
            *(step, int(job.state.progress.best_step)),
        )


def log_stop(step: int) -> None:
    """Says where training was stopped, and what to type to resume it."""
    arguments = [argument for argument in sys.argv if not re.match("--?start_new_model", argument)]
    logging.info("Stopped at step %d, which is saved. To go on: python %s", step, shlex.join(arguments))


def log_next_commands(folder: str, has_own_data: bool) -> None:
    """Says what to type next.

    Args:
        folder: the train_dir.
        has_own_data: whether the model was trained on something else than the sample set.
    """
    logging.info("Done training. The model is in %s. How to go on:", folder)
    where = "" if folder == utils.TRAIN_DIR else f" --train_dir={shlex.quote(folder)}"
    for script, data in (
        ("eval.py --run_once", " --eval_data_pattern='...'"),
        ("inference.py", " --input_data_pattern='...'"),
    ):
        path = os.path.join(os.path.dirname(sys.argv[0]), script)
        logging.info("  python %s%s%s", path, where, data if has_own_data else "")
    logging.info("  tensorboard --logdir=%s", shlex.quote(folder))


if __name__ == "__main__":
    utils.run_main(main)
