"""The classes of the kit, and what makes a prediction a dog."""

from typing import Any

CLASS_NAMES = ("cat", "dog")  # A label is an index of this tuple.
NUM_CLASSES = len(CLASS_NAMES)
CAT, DOG = range(NUM_CLASSES)
SMALLEST_PROBABILITY = 1e-7  # A log loss takes a smaller probability of the true class for this one.


def is_dog(probability: Any) -> Any:
    """Returns whether a probability of a dog means "dog": whether it is above one half.

    Args:
        probability: a float in [0, 1], or an array of them.

    Returns:
        A bool, or an array of them of the same shape.
    """
    return probability > 0.5


def counted(number: int, noun: str) -> str:
    """Returns such as "1 cat" or "2,000 cats"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
