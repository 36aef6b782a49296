"""What a training run consists of, built from its settings: everything that can be wrong is found here."""

import dataclasses
import os
from typing import Any

import keras
import numpy as np
from absl import logging

from cats_vs_dogs import (
    augmentation,
    bad_examples,
    checkpoints,
    example_index,
    open_reader,
    optimizers,
    photo_shards,
    readers,
    sample_data,
    train_dir,
    trained_data,
)
from cats_vs_dogs.classifier import Classifier
from cats_vs_dogs.config import Config
from cats_vs_dogs.distribution import Cluster
from cats_vs_dogs.plan import Plan
from cats_vs_dogs.utils import UserError


@dataclasses.dataclass(frozen=True)
class Job:
    """What a run consists of, built from its settings.

    Attributes:
        settings: the settings of the run.
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
        trained_on: keys of all that the model will have been trained on; None if they are not known.
        eval_trained_on: how many examples of `eval_shards` are among them; None if that is not known.
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
    trained_on: np.ndarray | None
    eval_trained_on: int | None
    record: dict[str, Any]


def look(settings: Config, cluster: Cluster) -> Job:
    """Checks train_dir and the data, plans the steps, builds model and optimizer. Changes nothing in train_dir."""
    has_model = cluster.is_chief and train_dir.check(settings.train_dir, settings)
    is_new = not has_model or checkpoints.newest_checkpoint(settings.train_dir) is None
    is_new = bool(cluster.broadcast_from_chief(int(is_new)))  # All create the same variables, or wait for each other.
    settings = settings if is_new else with_stored_seed(settings, cluster)
    settings, photos = find_photos(settings)
    data = settings.data
    reading = (settings.model.image_size, settings.model.resize_method)
    reader = open_reader.open_reader(True, *reading)
    shards, eval_shards = open_data(settings, photos, cluster.is_chief, reader)
    open_reader.check(shards, *reading)
    trained_on = eval_trained_on = None
    if cluster.is_chief:
        trained_on = trained_data.keys_of_run(settings.train_dir, shards, is_resumed=has_model)
    if eval_shards:
        eval_trained_on = trained_data.count_trained_on(eval_shards, trained_on, shards.files, "eval_data_pattern")
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
    if cluster.num_workers > 1:
        cluster.check_same(in_common(settings, shards, any_size=sizes is not None))
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
        trained_on=trained_on,
        eval_trained_on=eval_trained_on,
        record=train_dir.make_record(
            settings, shards.records, classifier.num_parameters, cluster.num_replicas, predictor.graph_number
        ),
    )


def with_stored_seed(settings: Config, cluster: Cluster) -> Config:
    """Returns the settings with the seed that the model in train_dir was built with; `settings.system` is unchanged."""
    seed = train_dir.load_spec(settings.train_dir).seed if cluster.is_chief else 0
    model = dataclasses.replace(settings.model, seed=cluster.broadcast_from_chief(seed))
    return dataclasses.replace(settings, model=model)


def find_photos(settings: Config) -> tuple[Config, photo_shards.PhotoShards | None]:
    """Finds the photos to train on, if the flag names photos and not shards, and makes shards of them.

    Returns:
        The settings and the shards of the photos; None if the flag names shards. The settings name the photos by
        absolute paths. If no other data are given to evaluate on, they name the photos for that, too, which means those
        for validation.

    Raises:
        UserError: if no photo is for training, or none is for evaluations that --early_stop_evals needs.
    """
    data, flag = settings.data, "train_data_pattern"
    photos = photo_shards.find(data.train_data_pattern, flag) if data.train_data_pattern else None
    evaluated = data.eval_data_pattern
    if photos and not photos.count("train"):
        raise UserError(
            f"--{flag}={data.train_data_pattern}: none of its labelled photos is for training; give more photos"
        )
    if photos and not evaluated and photos.count("validation"):
        evaluated = photos.name
    elif photos and not evaluated:
        logging.info(
            "Nothing is evaluated while training: none of the %d photos fell into validation; give "
            "--eval_data_pattern, or more photos",
            photos.count("train"),
        )
    if not evaluated and settings.periods.early_stop_evals:
        raise UserError(
            f"--early_stop_evals={settings.periods.early_stop_evals}: stopping early needs evaluations; give "
            "--eval_data_pattern, or leave --early_stop_evals out"
        )
    if photos:
        data = dataclasses.replace(data, train_data_pattern=photos.name, eval_data_pattern=evaluated)
    return dataclasses.replace(settings, data=data), photos


def open_data(
    settings: Config, photos: photo_shards.PhotoShards | None, is_chief: bool, reader: readers.BaseReader
) -> tuple[readers.Shards, readers.Shards | None]:
    """Opens what to train on, and on the chief what to evaluate on; checks that a model can learn from it.

    Args:
        settings: the first result of `find_photos`.
        photos: the second result of `find_photos`.
        is_chief: whether this process is the chief.
        reader: how to read a record.

    Raises:
        UserError: if it cannot be read, or shows one class only.
    """
    data = settings.data
    pattern = photos.pattern("train") if photos else data.train_data_pattern
    if not pattern:
        check_is_of_sample_set(settings)
        pattern = sample_data.pattern("train")
        logging.info("No --train_data_pattern given: using the kit's own sample set, %s", pattern)
    shards = bad_examples.open_shards(pattern, "train_data_pattern", reader, data.bad_examples, with_index=True)
    given = data.train_data_pattern or pattern
    example_index.check_classes(shards.index, f"--train_data_pattern={given}", data.allow_one_class)
    if not is_chief:
        return shards, None
    example_index.warn_of_unequal_classes(shards.index, settings.model.loss_params)
    example_index.warn_of_contradictions(shards.index)
    if not data.eval_data_pattern:
        return shards, None
    flag = "eval_data_pattern"
    if photos and data.eval_data_pattern == photos.name and photos.count("validation"):
        patterns = [photos.pattern("validation")]
    else:
        patterns = trained_data.eval_patterns(data.eval_data_pattern, flag, [data.train_data_pattern])
    return shards, bad_examples.open_shards(patterns, flag, reader, data.bad_examples, with_index=True)


def check_is_of_sample_set(settings: Config) -> None:
    """Checks that a model that resumes on the sample set, because no data are given, was trained on it.

    Raises:
        UserError: if it was trained on other data.
    """
    folder = settings.train_dir
    _, then = trained_data.find_run(folder)
    pattern = then and not settings.start_new_model and then["flags"].get("train_data_pattern")
    if pattern:
        raise UserError(
            f"--train_data_pattern: not given, but the model in --train_dir={folder} was trained on {pattern}; pass "
            "the same to resume it, or --start_new_model to delete it, or another --train_dir"
        )


def in_common(settings: Config, shards: readers.Shards, any_size: bool) -> dict[str, Any]:
    """Returns what all workers must share of shards and model, by what it is. Folders may differ.

    This worker builds the model once more for that, alone. Workers that build it together would wait for each other
    without end if their weights differ.

    Args:
        settings: these name the model.
        shards: what to train on, in this order.
        any_size: whether training pictures have several sizes.
    """
    counts = enumerate(shards.records.items(), start=1)
    read = {f"training shard {i}": f"{os.path.basename(path)}, {count} records" for i, (path, count) in counts}
    classifier = Classifier(settings.model, settings.system.precision, any_size=any_size)
    trainable = {variable.path for variable in classifier.model.trainable_variables}
    weights = {
        f"the weight {weight.path}": f"{list(weight.shape)}, {'trained' if weight.path in trainable else 'not trained'}"
        for weight in classifier.model.weights
    }
    graph = {"the number that stands for what the model calculates": classifier.graph_number}
    return {"the number of training shards": len(shards.records), **read, **weights, **graph}


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
    except UserError as error:
        raise UserError(f"--first_image_size={first_size}: the model does not take that size: {error}") from error
    return augmentation.SizeSchedule(first_size, last_size, plan.total_steps)


def build(
    settings: Config, learning_rate: optimizers.LearningRate, is_new: bool, any_size: bool
) -> tuple[Classifier, keras.optimizers.Optimizer, Classifier]:
    """Builds the model to train, its optimizer, and the model to evaluate and export.

    Args:
        settings: these name the model, the loss and the optimizer.
        learning_rate: a function of the step.
        is_new: whether training starts with this model, and no checkpoint will be restored.
        any_size: whether training pictures have several sizes.
    """
    precision = settings.system.precision
    classifier = Classifier(settings.model, precision, is_new, any_size)
    optimizer = optimizers.make_optimizer(
        settings.optimizer.optimizer,
        learning_rate,
        classifier.model.trainable_variables,
        scale_loss=precision == "mixed_float16",
        params=settings.optimizer.optimizer_params,
    )
    serves_both = precision == "float32" and not any_size
    predictor = classifier if serves_both else Classifier(settings.model)
    predictor.check_constants()
    classifier.check_training()  # Last, since building a model resets the generator of keras.random.
    return classifier, optimizer, predictor
