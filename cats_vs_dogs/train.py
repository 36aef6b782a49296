"""Trains a model on TFRecord shards or on photos.

    python cats_vs_dogs/train.py --train_data_pattern='shards/train-*' --train_dir=/tmp/cvd_model --model=LogisticModel
    python cats_vs_dogs/train.py --train_data_pattern=train.zip --train_dir=/tmp/cvd_model --recipe=good

Started again with the same flags, it resumes from the newest checkpoint in train_dir.
"""

import os
import sys

if __package__ in (None, ""):  # Run as a file: import the package next to this file, from any folder.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    import cats_vs_dogs  # Sets what TensorFlow reads when it is imported.

    cats_vs_dogs.forget_edited()

from absl import flags

from cats_vs_dogs import config, photo_sources, user_files, utils

if __name__ == "__main__":
    utils.read_flags(config.define_flags)  # Wrong flags are reported before TensorFlow is imported.
    with utils.exit_on_user_error():
        for flag in ("train_data_pattern", "eval_data_pattern"):  # So are photos and shards that are not there.
            photo_sources.check_there(flags.FLAGS[flag].value, flag)
    utils.import_tensorflow()
    with utils.exit_on_user_error():
        user_files.import_all()  # A mistake in them is reported in one line.

import contextlib
import math
import re
import shlex
import signal
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf
from absl import logging
from tensorflow.python.framework.config import disable_op_determinism  # Is not in tf.config.

from cats_vs_dogs import bad_examples, checkpoints, distribution, files, flag_files, terminal, train_dir, trained_data
from cats_vs_dogs.classifier import find_classes, seeded
from cats_vs_dogs.config import AVERAGES, Config, SystemConfig
from cats_vs_dogs.distribution import Cluster
from cats_vs_dogs.interruption import Alarm, StopRequest
from cats_vs_dogs.job import Job, look
from cats_vs_dogs.readers import get_reader  # noqa: F401 - It was here in 2017.
from cats_vs_dogs.trainer import SUMS, Profiler, StepOutputs, Trainer  # noqa: F401 - Trainer was here in 2017.
from cats_vs_dogs.training_evaluation import NoEvaluation, TrainingEvaluation
from cats_vs_dogs.training_log import TrainingLog, gather_batch
from cats_vs_dogs.training_tools import (
    Exporter,
    Nothing,
    Saver,
    Tools,
    make_batches,
    make_evaluation,
    make_trainer,
    use_features,
)
from cats_vs_dogs.utils import find_class_by_name  # noqa: F401 - It was here in 2017.


def main() -> None:
    """Trains what the flags name. The one place that reads FLAGS."""
    logging.info("Tensorflow version: %s.", tf.__version__)
    settings = config.read(flags.FLAGS)
    if settings.recipe:
        logging.info("%s", flag_files.describe(flags.FLAGS))
    find_classes(settings.model)
    with calculating_as_asked(settings.system):
        system = settings.system
        cluster = distribution.join_cluster(
            lambda: train_dir.in_common(settings) | user_files.code_hashes(), system.join_timeout, system.worker_timeout
        )
        with cluster.explain_lost_workers():
            stop_signal = train(settings, cluster)
    if stop_signal:
        sys.exit(128 + stop_signal)


@contextlib.contextmanager
def calculating_as_asked(system: SystemConfig) -> Iterator[None]:
    """Sets how TensorFlow calculates inside the block; a notebook may run something else after it."""
    tf.debugging.set_log_device_placement(system.log_device_placement)
    if system.deterministic:
        tf.config.experimental.enable_op_determinism()
    try:
        yield
    finally:
        tf.debugging.set_log_device_placement(False)
        if system.deterministic:
            disable_op_determinism()


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


# ---- Prepare: train_dir becomes that of this run, at the step to continue from.


def prepare(job: Job) -> None:
    """Deletes the old model if asked, restores the newest readable state, rewinds newer records, writes run.json."""
    folder, cluster = job.settings.train_dir, job.cluster
    if job.settings.start_new_model and cluster.is_chief:
        logging.info("Flag 'start_new_model' is set. Building a new model.")
        train_dir.delete_model(folder)
    cluster.sync()  # The chief has deleted it.
    restored = job.state.restore()
    cluster.check_same({"the step that --train_dir resumes from": job.state.step})
    if cluster.is_chief:
        if restored:
            train_dir.warn_of_changes(folder, job.record, trained_data.has_new_pictures(folder, job.shards))
            train_dir.warn_of_other_graph(folder, job.predictor.graph_number)
        with files.explain_write_errors(folder, "train_dir"):
            train_dir.delete_leftovers(folder)
            if job.has_model:  # Otherwise event files are another program's.
                job.state.rewind(is_resumed=restored is not None)
            train_dir.save_spec(folder, job.settings.model)
            train_dir.save_record(folder, job.record)
            trained_data.save_keys(folder, job.trained_on)
            bad_examples.write_bad_examples(job.shards, os.path.join(folder, "bad_examples.csv"))
            if job.eval_shards:
                files.make_output_folder(train_dir.eval_dir(folder), "train_dir")
                bad_examples.write_bad_examples(
                    job.eval_shards, os.path.join(train_dir.eval_dir(folder), "bad_examples.csv")
                )
    log_job(job, restored)


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
    logging.info(f"Resuming from {restored}." if restored else "No checkpoint file found. Building a new model.")


# ---- Run: the loop, and what to type next.


def run(job: Job) -> int | None:
    """Trains until the last step or until asked to stop; returns the number of the signal that asked."""
    folder, is_chief = job.settings.train_dir, job.cluster.is_chief
    log = evaluation = saver = exporter = profiler = Nothing()
    stop, alarm = StopRequest(), Alarm(job.settings.periods.save_checkpoint_secs if is_chief else 0)
    if is_chief:
        log = TrainingLog(folder, job.classifier, job.learning_rate, job.plan, job.sizes)
        saver, exporter = Saver(job.state, log, alarm), Exporter(folder, job.classifier, job.predictor)
        profiler = Profiler(folder, job.settings.periods.profile_steps)
        if not job.state.step:
            with files.explain_write_errors(folder, "train_dir"):
                log.start(job.record)
    on_features = job.plan.epochs_left(job.state.step) > 0 and use_features(job)
    evaluation = make_evaluation(job, log, on_features)
    epochs_left = 0 if evaluation.has_stopped_improving else job.plan.epochs_left(job.state.step)
    log_if_nothing_is_left(job, evaluation)
    with (
        bad_examples.explain_read_errors(job.reader, job.shards),
        contextlib.closing(log),
        contextlib.closing(profiler),
        contextlib.closing(alarm),
    ):
        batches = iter(job.cluster.distribute(make_batches(job, epochs_left, on_features)))
        trainer = make_trainer(job, (stop.requested, alarm.variable), on_features)
        tools = Tools(trainer, batches, log, evaluation, saver, exporter, profiler, stop)
        # Inside of explain_read_errors, which would otherwise look for a bad record when a worker is lost.
        with stop.listening(), job.cluster.explain_lost_workers():
            alarm.restart()
            is_stopped = loop(job, tools)
    if is_stopped:
        log_stop(job.state.step)
        return stop.signal_number or signal.SIGTERM
    evaluation.write_report()  # After the last checkpoint: whatever happens here, the model is saved.
    evaluation.log_best()
    if is_chief:
        log_next_commands(job.settings, job.shards.files)
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
    has_steps = not is_done and not is_stopped
    if has_steps:
        logging.info("Entering training loop.")
        tools.log.wait()
    while not is_done and not is_stopped:
        tools.profiler.update(step)
        tools.saver.is_due()  # If so, the steps are interrupted after the first.
        outputs = tools.trainer.run_steps(tools.batches, plan.steps_until_due(step), state.progress.sums)
        step += outputs.num_steps
        check_finite(step, outputs, float(job.learning_rate(step - 1)), job.settings.system.precision)
        state.progress.step.assign(step)
        state.progress.sums.assign(outputs.sums)
        tools.profiler.update(step)
        with files.explain_write_errors(job.settings.train_dir, "train_dir"):
            is_stopped, is_done = write(job, tools, step, outputs)
        del outputs  # Their pictures would take memory during the next steps.
    job.cluster.sync()  # The chief has written everything.
    if has_steps:
        if step >= plan.total_steps and plan.last_step_flag == "--num_epochs":
            logging.info("Done training -- epoch limit reached.")
        logging.info("Exited training loop.")
    return is_stopped


def write(job: Job, tools: Tools, step: int, outputs: StepOutputs) -> tuple[bool, bool]:
    """Writes what is due after a step; returns whether training was stopped, and whether it is done."""
    plan, is_last = job.plan, step >= job.plan.total_steps
    saves = is_last or tools.saver.is_due() or plan.evaluation_is_due(step)
    if plan.log_is_due(step):
        tools.log.log_step(step, outputs, tools.trainer, *gather_batch(job.cluster, outputs))
        job.state.progress.sums.assign(np.zeros(len(SUMS)))  # Each line has the means since the line before.
    if saves:
        tools.evaluation.run(step, is_last, lambda: bool(tools.stop))
    is_stopped, is_done = sync(job, tools, step)
    exports = plan.export_is_due(step) or is_done
    if exports or plan.is_first_logged(step):
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


def check_finite(step: int, outputs: StepOutputs, learning_rate: float, precision: str = "float32") -> None:
    """Checks that the loss and the gradients of a step are finite.

    Args:
        step: the number of steps done.
        outputs: those of the last of them.
        learning_rate: its learning rate.
        precision: what layers compute in.

    Raises:
        UserError: if they are not.
    """
    if outputs.is_finite:
        return
    # If the loss is not finite, no gradient is. Otherwise it helps to know where it began.
    culprits = [path for path, norm in outputs.gradient_norms.items() if not math.isfinite(norm)]
    advice = "a lower --base_learning_rate, --warmup_examples, or a lower --clip_gradient_norm"
    if precision != "float32":
        advice = f"--precision=float32 in place of {precision}, {advice}"
    where = f" (not finite for {', '.join(culprits[:3])})" if len(culprits) < len(outputs.gradient_norms) else ""
    raise utils.UserError(
        f"not finite any more between step {step - 1} and step {step}: the loss is {outputs.label_loss:.4g}, the "
        f"regularization loss {outputs.regularization_loss:.4g}, the norm of the gradients {outputs.gradient_norm:.4g} "
        f"(the largest before: {outputs.largest_gradient_norm:.4g}){where}, the learning rate {learning_rate:.4g}; "
        f"training stopped and saved nothing of it, and the last checkpoint is unchanged; try {advice}, and check that "
        "the last layer of the model suits the loss"
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
    resume = f"{utils.python_command()} {shlex.join(arguments)}"
    logging.info("Stopped at step %d, which is saved. To resume: %s", step, resume)


def log_next_commands(settings: Config, shards: Sequence[str]) -> None:
    """Says what was written and what to type next: commands that can be pasted, with the best model if there is one.

    Args:
        settings: those of the run.
        shards: paths of the training shards.
    """
    folder, data = settings.train_dir, settings.data
    # Who learned from mirror images or crops answers better about several of them.
    averages = [name for name in AVERAGES if name.removesuffix("_average") in data.augment]
    best = train_dir.best_dir(folder)
    model_dir = best if checkpoints.newest_checkpoint(best) else folder
    is_sample_set = not data.train_data_pattern
    splits = {"validation", "test"} if is_sample_set else splits_beside(shards)
    can_evaluate, can_predict = data.eval_data_pattern or "validation" in splits, "test" in splits
    predict = utils.command("inference.py", *averages, train_dir=model_dir)
    written = train_dir.describe(folder, is_short=terminal.shows_short_lines())
    logging.info("Done training. The model is in %s: %s.", folder, written)
    logging.info("What to type next:")
    if can_evaluate:
        logging.info("  %s", utils.command("eval.py", "run_once", *averages, train_dir=model_dir))
    if can_predict:
        logging.info("  %s", predict)
    logging.info("  %s --logdir=%s", utils.tensorboard_command(), shlex.quote(folder))
    logging.info("  then open %s, which shows the curves as they are, not smoothed", utils.TENSORBOARD_ADDRESS)
    if not can_evaluate:
        logging.info("To evaluate the model, give eval.py labelled shards or photos that it was not trained on.")
    if not can_predict:
        logging.info("To predict photos, name them (photo.jpg, a folder or a .zip file) after this command:")
        logging.info("  %s", predict)
    if model_dir == best:
        logging.info("--train_dir=%s is the best model; the last one is in %s.", shlex.quote(best), shlex.quote(folder))


def splits_beside(shards: Sequence[str]) -> set[str]:
    """Returns the splits of the shards in the folders of some, which eval.py and inference.py read by default."""
    folders = {os.path.dirname(path) or os.curdir for path in shards}
    return {name.partition("-")[0] for folder in folders for name in files.list_dir(folder) if "-" in name}


if __name__ == "__main__":
    utils.run_main(main)
