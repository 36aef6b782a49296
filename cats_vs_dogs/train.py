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
import math
import platform
import shlex
import time
from collections.abc import Callable, Iterator

import keras
import numpy as np
import tensorflow as tf
from absl import flags, logging

from cats_vs_dogs import (
    bad_examples,
    checkpoints,
    distribution,
    eval_util,
    export_model,
    optimizers,
    readers,
    sample_data,
    utils,
)
from cats_vs_dogs.classifier import Classifier, ModelSpec

FLAGS = flags.FLAGS


def define_flags() -> None:
    # Dataset flags.
    flags.DEFINE_string("train_dir", "/tmp/cvd_model/", "The directory to save the model files in.")
    flags.DEFINE_string(
        "train_data_pattern", "", "File glob for the training shards. Empty: the kit's own sample set, drawn once."
    )
    flags.DEFINE_integer("image_size", 32, "Height and width that pictures are resized to, pixels.", 1, 4096)
    flags.DEFINE_enum(
        "resize_method",
        "area",
        readers.RESIZE_METHODS,
        "How pictures are resized: area averages; legacy_bilinear gives the pixels of the 2017 kit, bit for bit.",
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
    flags.DEFINE_string(
        "optimizer", "AdamOptimizer", "Which optimizer: a name of tf.train in 2017, or a class of keras.optimizers."
    )
    flags.DEFINE_float(
        "clip_gradient_norm", 1.0, "Largest norm of the gradient of each variable. 0: no limit.", lower_bound=0.0
    )
    flags.DEFINE_integer(
        "seed", 0, "Seed of the initial weights, the order of examples, and random layers.", 0, 2**32 - 1
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
class StepOutputs:
    """What the last of some steps gave. The lists have a tensor for each device of this machine.

    Attributes:
        label_loss: mean over the global batch.
        regularization_loss: the same on every device.
        images: uint8 or float32 [batch on the device, size, size, 3].
        probabilities: float32 [batch on the device, 1].
        labels: int32 [batch on the device, 1].
    """

    label_loss: float
    regularization_loss: float
    images: list[tf.Tensor]
    probabilities: list[tf.Tensor]
    labels: list[tf.Tensor]


class Trainer:
    """Runs training steps.

    Args:
        classifier: what to train, built in the strategy's scope.
        optimizer: built, with a learning rate that is a function of its step.
        strategy: on which devices to train.
        regularization_penalty: weight of the regularization loss.
        jit_compile: whether XLA compiles the forward and backward pass.

    Attributes:
        timed_steps: number of steps timed so far: all but the first, which waits for the graph to be built.
        seconds: how long they took.
        waiting_seconds: how much of it they waited for a batch.
    """

    def __init__(
        self,
        classifier: Classifier,
        optimizer: keras.optimizers.Optimizer,
        strategy: tf.distribute.Strategy,
        regularization_penalty: float,
        jit_compile: bool,
    ):
        self.timed_steps = 0
        self.seconds = 0.0
        self.waiting_seconds = 0.0
        self._is_warm = False
        self._classifier = classifier
        self._optimizer = optimizer
        self._strategy = strategy
        self._regularization_penalty = regularization_penalty
        self._gradients = tf.function(
            self._gradients_of_batch, jit_compile=jit_compile or None
        )  # None, not False: inlined
        self._replica_step = tf.function(self._step_on_replica)
        self._run_steps = tf.function(self._run_steps_in_graph)

    def run_steps(self, batches: Iterator, num_steps: int) -> StepOutputs:
        """Takes steps without returning to Python between them.

        Args:
            batches: iterator over (ids, images, labels), perhaps distributed over devices.
            num_steps: how many steps to take, at least 1.

        Returns:
            The outputs of the last step.
        """
        if not self._is_warm and num_steps > 1:
            self._run_steps(batches, tf.constant(1))
            num_steps -= 1
        self._is_warm = True
        start = time.monotonic()
        waiting, outputs = self._run_steps(batches, tf.constant(num_steps))
        label_loss, regularization_loss, images, probabilities, labels = map(
            self._strategy.experimental_local_results, outputs
        )
        finished = StepOutputs(
            float(sum(label_loss)), float(sum(regularization_loss)), list(images), list(probabilities), list(labels)
        )
        self.timed_steps += num_steps
        self.seconds += time.monotonic() - start
        self.waiting_seconds += float(waiting)
        return finished

    def _run_steps_in_graph(self, batches, num_steps):
        waiting = tf.constant(0.0, tf.float64)
        step_done = tf.timestamp()
        for _ in tf.range(num_steps - 1):
            batch, seconds = _next_batch(batches, step_done)
            outputs = self._strategy.run(self._replica_step, args=batch)
            waiting += seconds
            with tf.control_dependencies(self._strategy.experimental_local_results(outputs[0])):
                step_done = tf.timestamp()
        batch, seconds = _next_batch(batches, step_done)
        return waiting + seconds, self._strategy.run(self._replica_step, args=batch)

    def _step_on_replica(self, unused_ids, images, labels):
        replicas = tf.distribute.get_replica_context()
        num_examples = tf.cast(tf.shape(labels)[0], tf.float32)
        share = num_examples / replicas.all_reduce(tf.distribute.ReduceOp.SUM, num_examples)
        gradients, label_loss, regularization_loss, probabilities = self._gradients(images, labels, share)
        # A variable that the loss does not depend on has no gradient.
        variables = self._classifier.model.trainable_variables
        pairs = [pair for pair in zip(gradients, variables, strict=True) if pair[0] is not None]
        # Summed here, since Keras clips before it sums. It then sums once more: each replica gives its part of the sum.
        gradients = replicas.all_reduce(tf.distribute.ReduceOp.SUM, [gradient for gradient, _ in pairs])
        gradients = [gradient / self._strategy.num_replicas_in_sync for gradient in gradients]
        self._optimizer.apply_gradients(zip(gradients, [variable for _, variable in pairs], strict=True))
        return label_loss, regularization_loss, images, probabilities, labels

    def _gradients_of_batch(self, images, labels, share):
        """Gradients of this replica's part of the loss, which is the mean over the global batch."""
        variables = [variable.value for variable in self._classifier.model.trainable_variables]
        with tf.GradientTape() as tape:
            outputs = self._classifier.model(readers.scale_images(images), labels, training=True)
            label_loss = share * self._classifier.label_loss(outputs, labels)
            regularization_loss = self._classifier.regularization_loss(outputs) / self._strategy.num_replicas_in_sync
            loss = label_loss + self._regularization_penalty * regularization_loss
            if isinstance(self._optimizer, keras.optimizers.LossScaleOptimizer):
                loss = self._optimizer.scale_loss(loss)
        probabilities = self._classifier.loss.probability(outputs["predictions"])
        return tape.gradient(loss, variables), label_loss, regularization_loss, probabilities


def _next_batch(batches, after: tf.Tensor):
    """Takes a batch once `after` is there, and says how many seconds that took."""
    with tf.control_dependencies([after]):
        asked = tf.timestamp()
    with tf.control_dependencies([asked]):
        batch = next(batches)
    with tf.control_dependencies(tf.nest.flatten(batch, expand_composites=True)):
        return batch, tf.timestamp() - asked


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

    def __str__(self) -> str:
        epochs = self.examples_at(self.total_steps) / self.num_examples
        return (
            f"{self.num_examples:,} examples, {self.total_steps:,} steps = {epochs:.4g} epochs of "
            f"{self.steps_per_epoch:,} steps."
        )


class Report:
    """Log lines and TensorBoard summaries of training.

    Args:
        train_dir: where the event file goes.
        classifier: its weights are shown as histograms.
        learning_rate: function from the number of steps done to the learning rate of the next.
        plan: how many examples the steps take.
    """

    def __init__(
        self,
        train_dir: str,
        classifier: Classifier,
        learning_rate: Callable[[int], tf.Tensor],
        plan: Plan,
    ):
        self.train_dir = train_dir
        self._writer = tf.summary.create_file_writer(train_dir)
        self._classifier = classifier
        self._learning_rate = learning_rate
        self._plan = plan
        self._last_clock = (0, 0.0, 0.0)

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
        examples_per_second, data_wait = num_examples / seconds, waiting / seconds
        self._last_clock = clock
        logging.info(
            "training step %d | Loss: %.2f Examples/sec: %.2f | Hit@1: %.2f PERR: %.2f GAP: %.2f | Waiting for data: "
            "%.0f%%",
            *(step, outputs.label_loss, examples_per_second, hit_at_one, perr, gap, 100 * data_wait),
        )
        with self._writer.as_default(step=step):
            tf.summary.scalar("model/Training_Hit@1", hit_at_one)
            tf.summary.scalar("model/Training_Perr", perr)
            tf.summary.scalar("model/Training_GAP", gap)
            tf.summary.scalar("global_step/Examples/Second", examples_per_second)
            tf.summary.scalar("global_step/Waiting_For_Data", data_wait)
            tf.summary.scalar("label_loss", outputs.label_loss)
            tf.summary.scalar("reg_loss", outputs.regularization_loss)
            tf.summary.scalar("learning_rate", self._learning_rate(step - 1))
        self._writer.flush()

    def log_weights(self, step: int, outputs: StepOutputs) -> None:
        """Writes histograms of the weights and of the input."""
        with self._writer.as_default(step=step):
            tf.summary.histogram("model/input_raw", readers.scale_images(tf.concat(outputs.images, axis=0)))
            for weight in self._classifier.model.weights:
                tf.summary.histogram(weight.path, weight.value)
        self._writer.flush()


def _whole(parts: list[tf.Tensor]) -> np.ndarray:
    return np.concatenate([part.numpy() for part in parts])


@dataclasses.dataclass(frozen=True)
class Periods:
    """When things are due, besides at the end; 0: only then. `save` is in seconds, the others in steps.

    `profile` are the steps between which a profile is recorded.
    """

    log: int
    export: int
    save: float
    profile: tuple[int, ...] = ()

    def steps_until_due(self, step: int, total_steps: int) -> int:
        """Returns how many steps there are from `step` to the next one at which something is due."""
        due = [step + period - step % period for period in (self.log, self.export) if period]
        return min(after for after in (total_steps, *due, *self.profile) if after > step) - step


def train_loop(
    trainer: Trainer,
    batches: Iterator,
    checkpoint: checkpoints.TrainingCheckpoint,
    report: Report,
    export: Callable[[int], None],
    total_steps: int,
    periods: Periods,
) -> None:
    """Trains until `total_steps`: step, log, save, export, each when it is due.

    Args:
        trainer: takes the steps.
        batches: iterator over batches, from the checkpoint's step on.
        checkpoint: saves; its `step` counts the steps done.
        report: logs and writes summaries.
        export: exports the model at a step.
        total_steps: the step to stop at.
        periods: when things are due.

    Raises:
        UserError: if the loss is not a number any more.
    """
    step, last_save = int(checkpoint.step), time.monotonic()
    while step < total_steps:
        if step in periods.profile[:1]:
            tf.profiler.experimental.start(report.train_dir)
        num_steps = periods.steps_until_due(step, total_steps)
        outputs = trainer.run_steps(batches, num_steps)
        check_finite(outputs, step, step + num_steps)
        step += num_steps
        checkpoint.step.assign(step)
        at_end = step == total_steps

        if step in periods.profile[1:]:
            tf.profiler.experimental.stop()
        if at_end or step % periods.log == 0:
            report.log_step(step, outputs, trainer)
        if at_end or (periods.save and time.monotonic() - last_save >= periods.save):
            checkpoint.save()
            last_save = time.monotonic()
        if at_end or (periods.export and step % periods.export == 0):
            report.log_weights(step, outputs)
            export(step)


def check_finite(outputs: StepOutputs, last_step: int, step: int) -> None:
    """Raises UserError if the loss, which was finite at `last_step`, is not a number any more."""
    if not math.isfinite(outputs.label_loss + outputs.regularization_loss):
        raise utils.UserError(
            f"the loss became {outputs.label_loss} (and the regularization loss {outputs.regularization_loss}) between "
            f"step {last_step} and step {step}; training stopped and the last checkpoint was left as it is; try a "
            "lower --base_learning_rate or --clip_gradient_norm, or see whether the last layer of the model suits the "
            "loss"
        )


def check_train_dir(train_dir: str, spec: ModelSpec, start_new_model: bool) -> None:
    """Makes sure that train_dir can be used for a model, before anything in it is changed.

    Args:
        train_dir: where to train.
        spec: the model to train.
        start_new_model: whether a model that is there will be deleted.

    Raises:
        UserError: if it cannot be written to, holds another model, or may not be deleted.
    """
    utils.make_folder(train_dir, "train_dir")
    if start_new_model:
        checkpoints.own_files(train_dir)
        return
    if not tf.io.gfile.exists(checkpoints.model_flags_path(train_dir)):
        if tf.train.latest_checkpoint(train_dir):
            raise utils.UserError(
                f"--train_dir={train_dir}: holds checkpoints that are not of this kit (no model_flags.json); name "
                "another train_dir"
            )
        return
    stored = checkpoints.load_spec(train_dir)
    for field in dataclasses.fields(ModelSpec):
        now, then = getattr(spec, field.name), getattr(stored, field.name)
        if now != then:
            raise utils.UserError(
                f"--{field.name}={now}: the model in --train_dir={train_dir} has {field.name}={then}; give the same to "
                "go on, or --start_new_model to delete it, or another --train_dir"
            )


def warn_of_changes(train_dir: str, flag_values: dict, files: dict[str, int]) -> None:
    """Warns if a model goes on with other data, batch size or seed than run.json says it was trained with.

    Args:
        train_dir: where run.json is.
        flag_values: all flags of the script.
        files: number of records of each shard.
    """
    path = os.path.join(train_dir, "run.json")
    if not tf.io.gfile.exists(path):
        return
    then = utils.read_json(path)
    changes = []
    if then.get("shards") != files:
        changes.append("other shards")
    for name in ("batch_size", "seed", "num_readers", "bad_examples"):
        if then.get("flags", {}).get(name) != flag_values[name]:
            changes.append(f"another {name}")
    if changes:
        logging.warning(
            "the model in %s was trained with %s; it goes on from its step, but not as an uninterrupted run would. "
            "For a new model name another --train_dir or pass --start_new_model",
            *(train_dir, " and ".join(changes)),
        )


def write_run_record(train_dir: str, flag_values: dict, files: dict[str, int], num_parameters: int) -> None:
    """Writes run.json: what was run, before it runs.

    Args:
        train_dir: where it goes.
        flag_values: all flags of the script.
        files: number of records of each shard.
        num_parameters: number of weights of the model.
    """
    record = {
        "flags": flag_values,
        "versions": {
            "python": platform.python_version(),
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "numpy": np.__version__,
        },
        "seed": flag_values["seed"],
        "shards": files,
        "parameters": num_parameters,
    }
    utils.write_json(os.path.join(train_dir, "run.json"), record)


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
    profile_steps = parse_profile_steps(FLAGS.profile_steps)
    check_train_dir(FLAGS.train_dir, spec, FLAGS.start_new_model)
    tf.debugging.set_log_device_placement(FLAGS.log_device_placement)

    # The data.
    pattern = FLAGS.train_data_pattern or sample_data.pattern("train")
    if not FLAGS.train_data_pattern:
        logging.info("No --train_data_pattern given: using the kit's own sample set, %s", pattern)
    reader = readers.get_reader(True, spec.image_size, spec.resize_method)
    bad_path = os.path.join(FLAGS.train_dir, "bad_examples.csv")
    shards = bad_examples.open_shards(pattern, "train_data_pattern", reader, FLAGS.bad_examples, bad_path)

    # The model, and how many steps it trains.
    strategy = distribution.make_strategy()
    plan = Plan(
        num_examples=shards.num_examples,
        batch_size=FLAGS.batch_size * strategy.num_replicas_in_sync,
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
    with strategy.scope():
        classifier = Classifier(spec, FLAGS.seed, FLAGS.precision)
        optimizer = optimizers.make_optimizer(
            FLAGS.optimizer,
            learning_rate,
            FLAGS.clip_gradient_norm / strategy.num_replicas_in_sync,  # Each replica gives its part of the gradient.
            scale_loss=FLAGS.precision == "mixed_float16",
        )
        optimizer.build(classifier.model.trainable_variables)

    flag_values = {flag.name: flag.value for flag in FLAGS.get_flags_for_module(sys.argv[0])}

    # Nothing in train_dir was changed up to here; now all that can be known to be wrong is known.
    if FLAGS.start_new_model:
        logging.info("Flag 'start_new_model' is set. Building a new model.")
        checkpoints.delete_training(FLAGS.train_dir)
    with strategy.scope():
        checkpoint = checkpoints.TrainingCheckpoint(FLAGS.train_dir, classifier, optimizer, FLAGS.keep_checkpoints)
    restored = checkpoint.restore_latest()
    if restored:
        warn_of_changes(FLAGS.train_dir, flag_values, shards.records)
    start_step = int(checkpoint.step)
    num_parameters = sum(math.prod(weight.shape) for weight in classifier.model.weights)
    checkpoints.save_spec(FLAGS.train_dir, spec)
    write_run_record(FLAGS.train_dir, flag_values, shards.records, num_parameters)

    logging.info(f"{spec.model}: {num_parameters:,} parameters.")
    logging.info("Number of training files: %d.", len(shards.files))
    logging.info("Using batch size of %d for training.", plan.batch_size)
    logging.info(str(plan))
    logging.info(f"Going on from {restored}." if restored else "No checkpoint file found. Building a new model.")
    if start_step >= plan.total_steps:
        logging.info(
            "Nothing left to train: the model is at step %d, and training ends at %d. Raise %s, or pass "
            "--start_new_model.",
            *(start_step, plan.total_steps, "--max_steps" if plan.ends_at_max_steps else "--num_epochs"),
        )

    exporter = export_model.ModelExporter(classifier if FLAGS.precision == "float32" else Classifier(spec))

    def export(step: int) -> None:
        model_dir = export_model.export_path(FLAGS.train_dir, step)
        logging.info("Exporting the model at step %d to %s.", step, model_dir)
        exporter.copy_weights(classifier)
        exporter.export_model(model_dir)

    has_gpu = bool(tf.config.list_logical_devices("GPU"))
    with bad_examples.named_errors(reader, shards):
        epochs_left = (plan.total_steps - start_step) / plan.steps_per_epoch
        batches = readers.make_training_dataset(
            reader,
            shards,
            plan.batch_size,
            FLAGS.seed,
            FLAGS.num_epochs,
            start_step,
            FLAGS.num_readers,
            decoded=readers.decode_all(reader, shards) if use_cache(FLAGS.cache, reader, shards, epochs_left) else None,
        )
        train_loop(
            Trainer(
                classifier,
                optimizer,
                strategy,
                FLAGS.regularization_penalty,
                jit_compile={"on": True, "off": False, "auto": has_gpu}[FLAGS.jit_compile],
            ),
            iter(distribution.distribute(strategy, batches)),
            checkpoint,
            Report(FLAGS.train_dir, classifier, learning_rate, plan),
            export,
            plan.total_steps,
            Periods(FLAGS.log_steps, FLAGS.export_model_steps, FLAGS.save_checkpoint_secs, profile_steps),
        )
    log_next_commands(FLAGS.train_dir, FLAGS["train_dir"].using_default_value, bool(FLAGS.train_data_pattern))


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
    sizes = f"{needed / 2**20:,.0f} MiB of pictures, {free / 2**20:,.0f} MiB of free memory"
    if cache == "memory" or (epochs_left > 1 and needed <= free / 4):
        logging.info("Cache: pictures are decoded once and stay in memory (%s).", sizes)
        return True
    why = "only one epoch" if epochs_left <= 1 else f"more than a quarter: {sizes}"
    logging.info("Cache: pictures are decoded in each epoch (%s).", why)
    return False


def log_next_commands(train_dir: str, is_default: bool, has_own_data: bool) -> None:
    """Says what to type next.

    Args:
        train_dir: where the model is.
        is_default: whether the other scripts look there by default.
        has_own_data: whether it was trained on something else than the sample set.
    """
    logging.info("Done training. The model is in %s. How to go on:", train_dir)
    where = "" if is_default else f" --train_dir={shlex.quote(train_dir)}"
    for script, data in (
        ("eval.py --run_once", " --eval_data_pattern='...'"),
        ("inference.py", " --input_data_pattern='...'"),
    ):
        path = os.path.join(os.path.dirname(sys.argv[0]), script)
        logging.info("  python %s%s%s", path, where, data if has_own_data else "")
    logging.info("  tensorboard --logdir=%s", shlex.quote(train_dir))


if __name__ == "__main__":
    utils.run_script(main, define_flags)
