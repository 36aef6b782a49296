"""The settings of a training run: the flags that set them, and the config that the code reads.

A field of a config has the name of its flag. To add a setting, define its flag in the group it belongs to, and add the
field to the config below. Imports nothing heavy, so that wrong flags are reported before TensorFlow is imported.
"""

import ast
import dataclasses
import glob
import importlib.util
import os
import shlex
import sys
from collections.abc import Callable
from typing import Any

from absl import flags

from cats_vs_dogs import file_patterns, files, flag_files, path_flags, utils
from cats_vs_dogs.path_flags import define_path

RESIZE_METHODS = ("area", "legacy_bilinear")
AUGMENTATIONS = ("none", "flip", "flip_crop", "flip_crop_colour", "flip_crop_mix")
AVERAGES = ("flip_average", "crop_average")  # Flags of eval.py and inference.py, and names in their metrics.
SCHEDULES = ("exponential", "cosine", "constant")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
BAD_EXAMPLES = ("fail", "skip")
CACHES = ("auto", "memory", "disk", "none")

# The optimizers of tf.train in 2017: the Keras class, and the defaults of 2017 where Keras has others.
# MomentumOptimizer had no default momentum and could not be used; 0.9 is the usual one.
OPTIMIZERS_OF_2017 = {
    "AdadeltaOptimizer": ("Adadelta", {"rho": 0.95, "epsilon": 1e-8}),
    "AdagradOptimizer": ("Adagrad", {"initial_accumulator_value": 0.1, "epsilon": 0.0}),
    "AdamOptimizer": ("Adam", {"epsilon": 1e-8}),
    "FtrlOptimizer": ("Ftrl", {}),
    "GradientDescentOptimizer": ("SGD", {}),
    "MomentumOptimizer": ("SGD", {"momentum": 0.9}),
    "RMSPropOptimizer": ("RMSprop", {"rho": 0.9, "epsilon": 1e-10}),
}

# Every setting changes the weights after a step, except these. On resume, a warning names each other one that changed;
# TensorBoard compares runs by the others.
WITHOUT_EFFECT = frozenset(
    {
        "train_dir",
        "train_data_pattern",  # The shards themselves are compared.
        "eval_data_pattern",
        "report",
        "allow_one_class",
        "early_stop_evals",
        "start_new_model",
        "cache",
        "log_steps",
        "export_model_steps",
        "save_checkpoint_secs",
        "keep_checkpoints",
        "profile_steps",
        "log_device_placement",
        "join_timeout",
        "worker_timeout",
    }
)


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """What is needed to build a model again; `train_dir/model_flags.json` holds it.

    It has no precision: evaluation, prediction and export are float32 whatever a model was trained with, also while it
    trains.

    Attributes:
        seed: seed of what `create_model` draws. A resumed run may have another --seed, for the order of examples.
    """

    model: str
    model_params: dict[str, Any]
    label_loss: str
    loss_params: dict[str, Any]
    image_size: int
    resize_method: str
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What a model is trained on, and in what form."""

    train_data_pattern: str
    eval_data_pattern: str
    batch_size: int
    num_readers: int
    augment: str
    first_image_size: int
    bad_examples: str
    allow_one_class: bool
    cache: str


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """How gradients change the weights."""

    optimizer: str
    optimizer_params: dict[str, Any]
    clip_gradient_norm: float
    regularization_penalty: float
    base_learning_rate: float
    learning_rate_schedule: str
    learning_rate_decay: float
    learning_rate_decay_examples: float
    warmup_examples: int


@dataclasses.dataclass(frozen=True)
class PeriodsConfig:
    """When training ends, and what happens how often until then."""

    num_epochs: int
    max_steps: int | None
    early_stop_evals: int
    log_steps: int
    export_model_steps: int
    save_checkpoint_secs: float
    keep_checkpoints: int
    profile_steps: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class SystemConfig:
    """How the machine calculates."""

    seed: int
    deterministic: bool
    precision: str
    jit_compile: str
    log_device_placement: bool
    join_timeout: float
    worker_timeout: float


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a training run.

    Attributes:
        recipe: name of the recipe that set some of the others; "" without one.
    """

    recipe: str
    train_dir: str
    start_new_model: bool
    report: bool
    model: ModelSpec
    data: DataConfig
    optimizer: OptimizerConfig
    periods: PeriodsConfig
    system: SystemConfig

    def settings(self) -> dict[str, Any]:
        """Returns the value of every setting by the name of its flag, as run.json holds them."""
        values = dataclasses.asdict(self)
        parts = {"model", "data", "optimizer", "periods", "system"}
        flat = {name: value for name, value in values.items() if name not in parts}
        for part in sorted(parts):
            flat |= values[part]
        return flat


def model_flags_path(train_dir: str) -> str:
    """Returns the path of model_flags.json, the ModelSpec in a train_dir."""
    return os.path.join(train_dir, "model_flags.json")


def require_model(train_dir: str) -> None:
    """Checks that a train_dir holds a model, before TensorFlow is imported; on an object store a later step does.

    Raises:
        UserError: if it does not.
    """
    if files.is_remote(train_dir) or os.path.exists(model_flags_path(train_dir)):
        return
    check_one_model(train_dir)
    advice, folder = "train one with train.py first", train_dir.rstrip("/")
    for _ in range(3):  # Of a checkpoint or an export, the folder of its model is named.
        folder = os.path.dirname(folder)
        if os.path.exists(model_flags_path(folder)):
            advice = f"write --train_dir={shlex.quote(folder or '.')}"
            break
    else:
        similar = file_patterns.nearest(train_dir)
        if similar and os.path.exists(model_flags_path(similar)):
            advice = f"did you mean --train_dir={shlex.quote(similar)}?"
    raise utils.UserError(f"--train_dir={train_dir}: holds no model (no model_flags.json); {advice}")


def find_models(text: str) -> list[str]:
    """Returns the folders of the models that --train_dir names, for scripts that take several.

    Args:
        text: one folder, or several with commas between them; see `path_flags.split_paths`. A pattern stands for the
            folders on this machine that it matches and that hold a model.

    Raises:
        UserError: if one holds no model, see `require_model`, or is named twice.
    """
    train_dirs: list[str] = []
    for path in _split(text):
        words = path.split()
        if len(words) > 1 and all(os.path.exists(model_flags_path(word)) for word in words):
            raise utils.UserError(f"--train_dir={path}: put commas between folders: --train_dir={','.join(words)}")
        if files.is_remote(path) or os.path.exists(path) or not glob.has_magic(path):
            train_dirs.append(path)
            continue
        matching = [folder for folder in sorted(glob.glob(path)) if os.path.exists(model_flags_path(folder))]
        if not matching:
            raise utils.UserError(
                f"--train_dir={path}: matches no folder that holds a model; name the folders as in a,b"
            )
        train_dirs += matching
    seen: dict[str, str] = {}
    for train_dir in train_dirs:
        require_model(train_dir)
        real_path = files.real_path(train_dir)
        if real_path in seen:
            same = "" if seen[real_path] == train_dir else f" ({seen[real_path]} is the same folder)"
            raise utils.UserError(f"--train_dir={text}: names {train_dir} twice{same}; name each model once")
        seen[real_path] = train_dir
    return train_dirs


def check_one_model(train_dir: str) -> None:
    """Checks that --train_dir names one model. Only eval.py and inference.py take several.

    Raises:
        UserError: if it names several.
    """
    if "," not in train_dir:
        return
    paths = _split(train_dir)
    if len(paths) > 1 and all(os.path.exists(model_flags_path(path)) for path in paths):
        raise utils.UserError(
            f"--train_dir={train_dir}: names {len(paths)} models; this script takes one model, so name one of them "
            "(eval.py and inference.py take several)"
        )


def _split(text: str) -> list[str]:
    try:
        return path_flags.split_paths(text)
    except ValueError as error:
        raise utils.UserError(f"--train_dir={text}: {error}") from error


def from_settings(settings: dict[str, Any]) -> Config:
    """Returns the config with these settings.

    Args:
        settings: the value of every setting by the name of its flag, as `Config.settings` returns them.
    """
    parts = {
        "model": ModelSpec,
        "data": DataConfig,
        "optimizer": OptimizerConfig,
        "periods": PeriodsConfig,
        "system": SystemConfig,
    }
    nested = {
        name: part(**{field.name: settings[field.name] for field in dataclasses.fields(part)})
        for name, part in parts.items()
    }
    own = {name: settings[name] for name in ("recipe", "train_dir", "start_new_model", "report")}
    return Config(**own, **nested)


def read(flag_values: flags.FlagValues) -> Config:
    """Returns the config that the command line asks for. Called by train.py's main, the one place that reads FLAGS."""
    check_one_model(flag_values.train_dir)
    settings = {flag.name: flag.value for group in flag_values.flags_by_module_dict().values() for flag in group}
    for name in flag_files.CLASS_OF_PARAMS:
        settings[name] = utils.parse_json_object(settings[name])
    settings["profile_steps"] = tuple(map(int, settings["profile_steps"]))
    return from_settings(settings)


# ---- The flags.


def define_flags() -> None:
    """Defines the flags of train.py."""
    _define_recipe_flag()  # First, since errors are reported in this order.
    _define_data_flags()
    _define_model_flags()
    _define_optimizer_flags()
    _define_schedule_flags()
    _define_evaluation_flags()
    _define_output_flags()
    _define_machine_flags()


def _define_recipe_flag() -> None:
    names = " ".join(f"{name}: {gives}" for name, gives in flag_files.recipes().items())
    flags.DEFINE_string(
        "recipe",
        "",
        f"Which recipe sets the flags that are not given: a file in the folder {flag_files.RECIPES}. {names} "
        "Empty: none.",
        module_name="training",
    )
    flags.register_validator("recipe", _check_recipe)


def _define_data_flags() -> None:
    define_path(
        "train_data_pattern",
        "",
        "File pattern of the training shards; or photos: a folder, a .zip file, a pattern, or several with commas "
        "between. Shards of photos are made once, in the user's cache. Empty: the kit's own sample set, drawn at first "
        "use.",
        module_name="data",
    )
    flags.DEFINE_enum(
        "resize_method",
        "area",
        RESIZE_METHODS,
        "How pictures are resized. area: averages; legacy_bilinear: the pixels of the 2017 kit, bit for bit.",
        module_name="data",
    )
    flags.DEFINE_integer(
        "image_size", 32, "Height and width that pictures are resized to, pixels.", 1, 4096, module_name="data"
    )
    flags.DEFINE_integer(
        "first_image_size",
        0,
        "Height and width of training pictures at the start, pixels. They grow to image_size in steps of 32 pixels; "
        "each size is used for half as many steps as the one before, which saves much time. Needs a model that takes "
        "any size, such as ConvNetModel. 0: image_size from the start.",
        0,
        4096,
        module_name="data",
    )
    flags.register_multi_flags_validator(
        ["first_image_size", "image_size"],
        lambda values: values["first_image_size"] <= values["image_size"],
        "pictures grow to image_size; give a smaller first_image_size, or a larger image_size",
    )
    flags.DEFINE_enum(
        "augment",
        "none",
        AUGMENTATIONS,
        "How training pictures are changed at random each time they are seen. flip: mirrors half of them; flip_crop: "
        "also cuts out at least half of each side; flip_crop_colour: also changes brightness, contrast and saturation; "
        "flip_crop_mix: like flip_crop, and also mixes each picture with another one, and their labels.",
        module_name="data",
    )
    define_bad_examples_flag("them in train_dir/bad_examples.csv.")
    flags.DEFINE_enum(
        "cache",
        "auto",
        CACHES,
        "Where decoded pictures stay for the next epochs. memory; disk: in a file in the user's cache; none: they are "
        "decoded in each epoch; auto: in memory if they need at most a quarter of what is free there, else on disk by "
        "the same rule, else none. The weights are the same either way. The output of frozen layers is kept in memory "
        "by the same rule.",
        module_name="data",
    )
    flags.DEFINE_integer("num_readers", 8, "How many shards are read in turn.", lower_bound=1, module_name="data")


def define_bad_examples_flag(where: str) -> None:
    """Defines --bad_examples, which several scripts have.

    Args:
        where: end of the help text, after "lists": what is listed where.
    """
    flags.DEFINE_enum(
        "bad_examples",
        "fail",
        BAD_EXAMPLES,
        "What to do with a record that cannot be read. fail: names it and stops; skip: reads everything once before, "
        f"leaves the bad ones out and lists {where}",
        module_name="data",
    )


def define_average_flags(module_name: str) -> None:
    """Defines --flip_average and --crop_average, which eval.py and inference.py have.

    Args:
        module_name: the group of flags in the help.
    """
    flags.DEFINE_bool(
        "flip_average",
        False,
        "Average the model's outputs over a picture and its mirror image.",
        module_name=module_name,
    )
    flags.DEFINE_bool(
        "crop_average",
        False,
        "Average the model's outputs over a picture, the middle 90 % and the middle 80 % of its height and width. It "
        "helps models that were trained with --augment=flip_crop, and takes three times as long.",
        module_name=module_name,
    )


def _define_model_flags() -> None:
    flags.DEFINE_string(
        "model", "LogisticModel", "Which model to train: a class in cvd_models.py.", module_name="model"
    )
    flags.DEFINE_string(
        "model_params",
        "",
        "JSON object of parameters for create_model, such as '{\"num_mixtures\": 4}'. Empty: none.",
        module_name="model",
    )
    flags.DEFINE_string(
        "label_loss", "CrossEntropyLoss", "Which loss to train with: a class in losses.py.", module_name="model"
    )
    flags.DEFINE_string(
        "loss_params",
        "",
        "JSON object of parameters for calculate_loss, such as '{\"b\": 2.0}'. Empty: none.",
        module_name="model",
    )
    for name in ("model_params", "loss_params"):
        flags.register_validator(name, _check_json)
    for name, module in (("model", "cvd_models"), ("label_loss", "losses")):
        flags.register_validator(name, _class_check(module))


def _define_optimizer_flags() -> None:
    flags.DEFINE_integer(
        "batch_size", 512, "How many examples each device takes per step.", 1, 2**31 - 1, module_name="training"
    )
    flags.DEFINE_string(
        "optimizer",
        "AdamOptimizer",
        "Which optimizer: a name of tf.train in 2017, or a class of keras.optimizers.",
        module_name="training",
    )
    flags.register_validator("optimizer", _check_optimizer)
    flags.DEFINE_string(
        "optimizer_params",
        "",
        "JSON object of further arguments of the optimizer's class, such as '{\"weight_decay\": 0.05}', which leaves "
        "biases and batch norm alone. Empty: none.",
        module_name="training",
    )
    flags.register_validator("optimizer_params", _check_json)
    flags.DEFINE_float(
        "clip_gradient_norm",
        1.0,
        "Largest norm of each variable's gradient. 0: no limit.",
        lower_bound=0.0,
        module_name="training",
    )
    flags.DEFINE_float(
        "regularization_penalty",
        1.0,
        "Weight of the regularization loss (the label loss has a weight of 1). 0: none.",
        lower_bound=0.0,
        module_name="training",
    )
    flags.DEFINE_bool(
        "allow_one_class",
        False,
        "Train even if all labels are the same. A model learns nothing from one class, so this is an error otherwise.",
        module_name="training",
    )
    flags.DEFINE_integer(
        "seed",
        0,
        "Seed of the initial weights, the order of examples, and random layers. The same seed gives the same weights "
        "to the bit on CPUs; for GPUs see deterministic.",
        0,
        2**32 - 1,
        module_name="training",
    )


def _define_schedule_flags() -> None:
    flags.DEFINE_integer("num_epochs", 5, "Number of passes over the data.", 1, 2**31 - 1, module_name="training")
    flags.DEFINE_integer(
        "max_steps",
        None,
        "The step to stop at, even if num_epochs is not reached. By default there is no limit.",
        lower_bound=1,
        module_name="training",
    )
    flags.DEFINE_float(
        "base_learning_rate", 0.01, "The initial learning rate.", lower_bound=0.0, module_name="training"
    )
    flags.DEFINE_enum(
        "learning_rate_schedule",
        "exponential",
        SCHEDULES,
        "exponential: multiplied by learning_rate_decay every learning_rate_decay_examples; cosine: down to 0 at the "
        "end of training; constant.",
        module_name="training",
    )
    flags.DEFINE_float(
        "learning_rate_decay",
        0.95,
        "Factor of the exponential schedule.",
        lower_bound=0.0,
        upper_bound=1.0,
        module_name="training",
    )
    flags.DEFINE_float(
        "learning_rate_decay_examples",
        4000000,
        "Period of the exponential schedule, examples.",
        lower_bound=1.0,
        module_name="training",
    )
    flags.DEFINE_integer(
        "warmup_examples",
        0,
        "The learning rate grows linearly over this number of examples at the start. 0: no warm-up.",
        lower_bound=0,
        module_name="training",
    )


def _define_evaluation_flags() -> None:
    define_path(
        "eval_data_pattern",
        "",
        "File pattern of labelled shards, or photos as in train_data_pattern. Evaluates on them at every checkpoint; a "
        "checkpoint is then also saved after each epoch. train_dir/best holds the model with the lowest loss. Empty: "
        "no evaluation; with photos in train_data_pattern, a tenth of them.",
        module_name="evaluation",
    )
    flags.DEFINE_integer(
        "early_stop_evals",
        0,
        "Stop after this number of evaluations in a row without a loss lower than the best. 0: never. Needs "
        "eval_data_pattern, or photos in train_data_pattern.",
        lower_bound=0,
        module_name="evaluation",
    )
    flags.register_multi_flags_validator(
        ["early_stop_evals", "eval_data_pattern", "train_data_pattern"],  # The latter may name photos: see job.py.
        lambda values: not values["early_stop_evals"] or values["eval_data_pattern"] or values["train_data_pattern"],
        "stopping early needs evaluations; give --eval_data_pattern, or leave --early_stop_evals out",
    )


def _define_output_flags() -> None:
    define_path(
        "train_dir",
        utils.default_train_dir(),
        "The folder for everything that training writes. A run continues from the newest checkpoint in it.",
        module_name="output",
    )
    flags.DEFINE_bool(
        "start_new_model",
        False,
        "Delete the model in train_dir and start a new one, instead of resuming from its newest checkpoint.",
        module_name="output",
    )
    define_report_flag("With eval_data_pattern, write")
    flags.DEFINE_integer(
        "log_steps", 10, "The period of log lines and summaries, steps.", lower_bound=1, module_name="output"
    )
    flags.DEFINE_integer(
        "export_model_steps",
        1000,
        "The period of exports for batch prediction, steps; the final model is always exported. 0: only that one.",
        lower_bound=0,
        module_name="output",
    )
    flags.DEFINE_float(
        "save_checkpoint_secs",
        900,
        "The period of checkpoints, seconds; the final model is always saved. 0: only that one.",
        lower_bound=0.0,
        module_name="output",
    )
    flags.DEFINE_integer(
        "keep_checkpoints", 5, "How many of the newest checkpoints to keep.", lower_bound=1, module_name="output"
    )


def define_report_flag(begins: str) -> None:
    """Defines --report, which several scripts have.

    Args:
        begins: how the help text begins.
    """
    flags.DEFINE_bool(
        "report",
        True,
        f"{begins} train_dir/eval/report.html: a page with metrics, curves, and photos that are worth a look.",
        module_name="output",
    )


def _define_machine_flags() -> None:
    flags.DEFINE_enum(
        "precision",
        "float32",
        PRECISIONS,
        "Number format of the layers' calculations in training. Weights, loss and export are always float32.",
        module_name="machine",
    )
    flags.DEFINE_enum(
        "jit_compile",
        "auto",
        ["auto", "on", "off"],
        "Whether XLA compiles the training step. auto: on one GPU; not on CPUs, where it is slower, nor on several "
        "GPUs, where it cannot synchronise batch norm.",
        module_name="machine",
    )
    flags.DEFINE_bool(
        "deterministic",
        False,
        "Use only GPU kernels that give the same bits each time; they are slower. CPUs always do.",
        module_name="machine",
    )
    flags.DEFINE_bool(
        "log_device_placement",
        False,
        "Log the device on which every op runs, the first time it runs.",
        module_name="machine",
    )
    flags.DEFINE_list(
        "profile_steps",
        [],
        "Two steps, such as 10,20: the steps between them are recorded for TensorBoard's Profile tab. Empty: no "
        "profile.",
        module_name="machine",
    )
    flags.register_validator(
        "profile_steps",
        lambda steps: not steps or (len(steps) == 2 and all(map(str.isdigit, steps)) and int(steps[0]) < int(steps[1])),
        "give two steps, the smaller one first: 10,20",
    )
    flags.DEFINE_float(
        "join_timeout",
        600,
        "With several workers (TF_CONFIG): how long one waits at its start for the others, seconds.",
        1.0,
        86400.0,
        module_name="machine",
    )
    flags.DEFINE_float(
        "worker_timeout",
        30,
        "With several workers: how long one may not answer, for example because its machine is paused, before it "
        "counts as lost and training ends on all, seconds.",
        1.0,
        86400.0,
        module_name="machine",
    )


# ---- Checks that need no TensorFlow.


def _check_recipe(name: str) -> bool:
    names = list(flag_files.recipes())
    if name and name not in names:
        raise flags.ValidationError(f"no such recipe{utils.suggest(name, names)}")
    return True


def _check_json(text: str) -> bool:
    try:
        utils.parse_json_object(text)
    except ValueError as error:
        raise flags.ValidationError(str(error)) from error
    return True


def _class_check(module: str) -> Callable[[str], bool]:
    """Returns a validator of class names that reads a module's source instead of importing it.

    It lets a name pass that the source may define in a way that cannot be seen; `utils.find_class` checks that later.
    """

    def check(name: str) -> bool:
        path = os.path.join(os.path.dirname(os.path.abspath(__file__)), f"{module}.py")
        names = None if f"cats_vs_dogs.{module}" in sys.modules else _names_defined_in(path)
        if names is None or name in names:
            return True
        bases = {"BaseModel", "BaseLoss"}
        available = sorted(one for one, is_class in names.items() if is_class and one not in bases)
        raise flags.ValidationError(f"no such class in {module}.py{utils.suggest(name, available)}")

    return check


def _names_defined_in(path: str) -> dict[str, bool] | None:
    """Returns the names that a source file defines, and whether each is a class; None if that cannot be seen."""
    try:
        with open(path, encoding="utf-8") as file:
            source = file.read()
        tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError):  # The import will say what is wrong.
        return None
    if any(word in source for word in ("import *", "globals(", "setattr(", "exec(", "__getattr__")):
        return None
    names: dict[str, bool] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            names[node.name] = True
        elif isinstance(node, ast.alias):
            names[(node.asname or node.name).partition(".")[0]] = False
        elif isinstance(node, ast.FunctionDef):
            names.setdefault(node.name, False)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.setdefault(node.id, False)
    return names


def _check_optimizer(name: str) -> bool:
    keras = importlib.util.find_spec("keras")  # Finds the package without importing it.
    path = os.path.join(os.path.dirname(keras.origin), "optimizers", "__init__.py") if keras and keras.origin else ""
    names = _names_defined_in(path)
    if names is None or name in names or name in OPTIMIZERS_OF_2017:
        return True
    classes = {one for one in names if one[0].isupper()} - {
        "Optimizer",
        "LossScaleOptimizer",
        "MultiOptimizer",
        "OptimizerMap",
    }
    raise flags.ValidationError(f"no such optimizer{utils.suggest(name, sorted({*classes, *OPTIMIZERS_OF_2017}))}")
