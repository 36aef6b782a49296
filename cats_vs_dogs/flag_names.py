"""What users call flags elsewhere, so that an unknown flag is answered with the one they mean."""

import difflib
import functools
import glob
import os
import re
from collections.abc import Collection, Sequence

# Data, as Keras, timm, fastai, Hugging Face and Ultralytics call it.
_DATA = (
    "data dataset data_dir data_path dataset_path dataset_dir data_root datadir root path input inputs input_dir d i"
)
_OUTPUT = "output out o output_dir out_dir outdir output_path save_dir save_path dst dest destination target"

# A flag, and other names for it. If a name stands in several lines, it means the first flag that the script has.
_OTHER_NAMES = [
    # Data.
    (
        "train_data_pattern",
        f"{_DATA} train train_data train_path train_files train_dataset train_data_dir train_pattern images photos "
        "source src input_data_pattern data_pattern tfrecords shards training_data",
    ),
    (
        "eval_data_pattern",
        "val val_data val_dir val_path val_data_dir val_data_pattern val_pattern val_dataset valid valid_data "
        "valid_dir validation validation_data validation_dir validation_file validation_data_pattern eval_data "
        "eval_path eval_dataset eval_file test_data test_dir test_data_pattern data_pattern input_data_pattern images "
        f"photos source src {_DATA}",
    ),
    (
        "input_data_pattern",
        f"{_DATA} test test_data test_dir test_path test_file test_data_pattern source src images image img photos "
        "pictures predict eval_data_pattern train_data_pattern data_pattern",
    ),
    ("images", f"{_DATA} image photos pictures zip folder source src input_data_pattern img_dir image_dir"),
    ("source", f"{_DATA} src url uri bucket"),
    ("json_prediction_files_pattern", f"{_DATA} json json_file input_file predictions source src input_data_pattern"),
    ("validation_percent", "val_split validation_split val_percent val_size valid_pct valid_percent test_size split"),
    (
        "image_size",
        "img_size imgsz img imagesize size input_size resolution res crop_size img_dim image_dim target_size",
    ),
    ("resize_method", "interpolation resize_mode resize"),
    ("augment", "aug augmentation augmentations data_augmentation auto_augment aa transforms transform flip hflip"),
    ("bad_examples", "skip_bad skip_errors ignore_errors on_error"),
    # Model and loss.
    ("model", "arch architecture net network model_name model_type a m"),
    (
        "model_params",
        "backbone pretrained freeze model_args model_kwargs num_mixtures filters num_blocks trainable_from",
    ),
    ("label_loss", "loss loss_fn loss_function criterion objective"),
    ("loss_params", "label_smoothing smoothing class_weights class_weight loss_args"),
    # Training.
    (
        "num_epochs",
        "epochs epoch n_epochs nb_epochs nb_epoch max_epochs num_train_epochs train_epochs total_epochs e ep",
    ),
    ("max_steps", "steps step num_steps iterations iters max_iter max_iters num_iterations train_steps total_steps"),
    ("batch_size", "batch bs b batchsize train_batch_size eval_batch_size per_device_train_batch_size minibatch"),
    ("base_learning_rate", "lr learning_rate lr0 init_lr initial_lr initial_learning_rate base_lr lr_max max_lr"),
    ("learning_rate_schedule", "sched schedule scheduler lr_schedule lr_scheduler lr_scheduler_type cos_lr"),
    ("learning_rate_decay", "lr_decay decay decay_rate gamma lrf"),
    ("warmup_examples", "warmup warmup_steps warmup_epochs warmup_ratio num_warmup_steps"),
    ("clip_gradient_norm", "clip clip_grad grad_clip clip_norm clipnorm max_grad_norm gradient_clip_val"),
    ("regularization_penalty", "l2 l2_reg reg regularization"),
    ("optimizer", "opt optim"),
    ("optimizer_params", "weight_decay wd momentum beta_1 beta_2 betas epsilon nesterov optimizer_args opt_eps"),
    ("seed", "random_seed random_state rng_seed"),
    ("early_stop_evals", "patience early_stop early_stopping early_stopping_patience"),
    # Output.
    (
        "output_file",
        f"{_OUTPUT} csv csv_file submission submission_file csv_output_file predictions_file result results",
    ),
    ("csv_output_file", f"{_OUTPUT} output_file csv csv_file submission"),
    ("export_dir", f"{_OUTPUT} export_path saved_model_dir"),
    ("output_path", f"{_OUTPUT} output_file results"),
    ("model_dir", "train_dir model model_path weights checkpoint ckpt saved_model saved_model_dir export_dir logdir"),
    ("output_dir", f"{_OUTPUT} tfrecords shards"),
    ("destination", _OUTPUT),
    (
        "train_dir",
        f"{_OUTPUT} logdir log_dir model_dir model_path checkpoint checkpoint_dir checkpoint_path ckpt ckpt_dir "
        "ckpt_path weights load run_dir workdir work_dir project exp experiment name tensorboard_dir job_dir",
    ),
    ("mistakes_file", "mistakes wrong misclassified errors_file"),
    ("as_images", "images jpg jpeg photos pictures"),
    ("examples_per_shard", "shard_size images_per_shard samples_per_shard"),
    ("start_new_model", "overwrite overwrite_output_dir restart from_scratch fresh no_resume exist_ok reset"),
    ("save_checkpoint_secs", "save_period save_every save_steps save_freq save_interval checkpoint_interval"),
    ("keep_checkpoints", "max_to_keep save_total_limit keep checkpoint_hist"),
    ("log_steps", "log_every log_interval log_freq logging_steps print_freq display_step"),
    ("export_model_steps", "export_every export_steps"),
    ("flip_average", "tta"),
    ("crop_average", "multi_crop ten_crop five_crop"),
    ("run_once", "once"),
    # Machine.
    ("precision", "amp fp16 bf16 half mixed_precision use_amp dtype"),
    ("jit_compile", "xla jit compile torchcompile"),
    ("num_workers", "workers j threads num_threads num_readers"),
    ("num_readers", "workers num_workers j threads num_threads dataloader_num_workers"),
    ("direct_num_workers", "workers j threads num_threads num_readers"),
    ("profile_steps", "profile profiler"),
]

# Names that stand in the JSON object of such a flag.
_JSON_KEYS = (
    *("backbone", "trainable_from", "num_mixtures", "filters", "num_blocks", "label_smoothing", "class_weights"),
    *("weight_decay", "momentum", "beta_1", "beta_2", "epsilon", "nesterov"),
)

# Names of what no script has a flag for, and why.
_NOT_NEEDED = {
    "device devices gpu gpus cuda ngpu num_gpus n_gpu use_gpu": "all GPUs are used; CUDA_VISIBLE_DEVICES=0 in front of "
    "the command chooses the first",
    "resume resume_from": "training resumes by itself from the newest checkpoint in train_dir; leave it out",
    "shuffle": "training always shuffles; leave it out",
    "num_classes nc classes n_classes": "the classes are cat and dog; leave it out",
}

# The flags that train_dir/model_flags.json holds: the fields of config.ModelSpec.
FLAGS_OF_THE_MODEL = ("model", "model_params", "label_loss", "loss_params", "image_size", "resize_method", "seed")

# Modules that define flags for a script.
_SCRIPT_OF = {"config": "train", "submission": "inference"}


def explain_unknown_flag(name: str, available: Collection[str]) -> str:
    """Returns what to write instead of a flag that a script does not have; "" if that is not known.

    Args:
        name: the flag's name, as typed without hyphens in front.
        available: the names of the script's flags.
    """
    plain = name.lower().replace("-", "_")
    if plain in available:
        return f"did you mean --{plain}?"
    meant = [flag for flag, names in _OTHER_NAMES if plain in names.split()]
    here = [flag for flag in meant if flag in available]
    if here and plain in _JSON_KEYS:
        return f"did you mean --{here[0]}='{{\"{plain}\": <value>}}'?"
    if here:
        return f"did you mean --{here[0]}?"
    for flag in (plain, *meant):
        scripts = _scripts_with(flag)
        if flag in FLAGS_OF_THE_MODEL and "train_dir" in available:
            return f"--{flag} comes from train_dir, where train.py keeps it; leave it out"
        if flag in FLAGS_OF_THE_MODEL and "model_dir" in available:
            return f"--{flag} is part of the exported model; leave it out"
        if scripts:
            return f"--{flag} is a flag of {' and '.join(scripts)}; leave it out"
    nearest = difflib.get_close_matches(plain, available, n=1, cutoff=0.75)
    if nearest:
        return f"did you mean --{nearest[0]}?"
    return next((reason for names, reason in _NOT_NEEDED.items() if plain in names.split()), "")


_DASHES = re.compile("[\u2010-\u2015\u2212]+-*(?=[A-Za-z])")  # Those of a text program.
_SWITCH_VALUES = ("true", "false", "yes", "no")


def looks_like_a_flag(word: str) -> bool:
    """Whether a word on a command line is more like a mistyped flag than like a path, and no file has that name."""
    is_like = _DASHES.match(word) or re.match(r"[A-Za-z_-]\w*=", word) or word.lower() in _SWITCH_VALUES
    return bool(is_like) and not os.path.lexists(word) and not glob.glob(word)


def explain_words(words: Sequence[str], available: Collection[str]) -> str:
    """Returns what to write instead of words on a command line that do not belong to a flag.

    Args:
        words: the words, at least one.
        available: the names of the script's flags.
    """
    dashes = _DASHES.match(words[0])
    if dashes:
        return f"its dash is that of a text program; write --{words[0][dashes.end() :]}"
    name, equals, value = words[0].partition("=")
    if equals and re.fullmatch(r"[\w-]+", name):
        answer = explain_unknown_flag(name, available).removesuffix("?")
        return f"{answer}={value}?" if answer.startswith("did you mean") else f"write --{name}={value}"
    if words[0].lower() in _SWITCH_VALUES:
        return "a switch is set by its name alone, such as --name, and unset by --noname"
    data = next((flag for flag, names in _OTHER_NAMES if flag in available and "data" in names.split()), None)
    example = f"{data}={words[0]}" if data and len(words) == 1 else "name=value"
    return f"write --{example}, and put quotes around patterns and around paths with spaces"


@functools.cache
def _scripts_with(flag: str) -> list[str]:
    """Returns the scripts that have a flag, such as ["train.py"], by their sources."""
    scripts = set()
    for path in glob.glob(os.path.join(glob.escape(os.path.dirname(os.path.abspath(__file__))), "*.py")):
        with open(path, encoding="utf-8") as file:
            if re.search(rf'(?:DEFINE_\w+|define_path)\(\s*"{re.escape(flag)}"', file.read()):
                module = os.path.basename(path).removesuffix(".py")
                scripts.add(f"{_SCRIPT_OF.get(module, module)}.py")
    return sorted(scripts, key=lambda script: (script != "train.py", script))
