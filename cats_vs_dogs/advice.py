"""What to try when a model is hardly better than guessing."""

import contextlib
from collections.abc import Mapping
from typing import Any

from absl import logging

from cats_vs_dogs import eval_util, flag_files, train_dir
from cats_vs_dogs.utils import UserError

_FEWEST_EXAMPLES = 100  # With fewer, or with a smaller share of one class, chance decides too much.
_SMALLEST_SHARE = 0.25
_POOR = 0.3  # A poor model avoids less than this share of guessing's mistakes: accuracy 0.65 for equal classes.


def is_poor(metrics: Mapping[str, Any]) -> bool:
    """Whether metrics show a model that is hardly better than one that always names the larger class.

    Args:
        metrics: see `evaluation.Evaluation`.
    """
    sizes = eval_util.class_sizes(metrics["confusion"]).values()
    guessing = max(sizes) / sum(sizes)
    if sum(sizes) < _FEWEST_EXAMPLES or 1 - guessing < _SMALLEST_SHARE:
        return False
    return metrics["avg_hit_at_one"] < guessing + _POOR * (1 - guessing)


def log_recipes(metrics: Mapping[str, Any], model_dir: str) -> None:
    """Logs the names of the recipes if a model is poor and was not trained with one of them.

    Args:
        metrics: see `evaluation.Evaluation`.
        model_dir: its train_dir, or the folder `best` in one.
    """
    run = {}
    with contextlib.suppress(UserError):  # A damaged run.json does not keep a model from being evaluated.
        _, run = train_dir.find_run(model_dir)
    if not is_poor(metrics) or run.get("flags", {}).get("recipe"):
        return
    sizes = eval_util.class_sizes(metrics["confusion"])
    larger = max(sizes, key=sizes.__getitem__)
    logging.info(
        "Hardly better than the answer %s for every picture: accuracy %.3f instead of %.3f. Recipes for better models: "
        "train.py --recipe=NAME, with %s as NAME.",
        *(larger, metrics["avg_hit_at_one"], sizes[larger] / sum(sizes.values()), " or ".join(flag_files.recipes())),
    )
