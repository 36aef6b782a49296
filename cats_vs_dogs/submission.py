"""The CSV of predictions: its columns and rows, and which ids it can hold.

Id,Category
1.jpg,1
2.jpg,0

Kaggle's "Dogs vs. Cats" competitions want the number of each picture instead of its id, in the order of the numbers:

id,label
1,0.9987654
2,1e-07

inference.py writes it, and convert_prediction_from_json_to_csv.py writes the same file from the results of a batch
prediction. Does not import TensorFlow.
"""

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TextIO

import numpy as np
from absl import flags

from cats_vs_dogs import labels

# What the second column can hold.
OUTPUT_COLUMNS = ("category", "probability")

# The values of --submission, and what the second column of each holds if --output_column is not given.
FORMATS = {"2017": "category", "kaggle": "probability"}

# How exactly 0 and 1 are written, see `probability_texts`.
_EXACTLY = {"0.0": "1e-46", "1.0": "0.99999999"}

# Kaggle scores the log loss, which is infinite for a wrong answer of exactly 0 or 1. With this bound a wrong answer
# costs at most 16.1, and a right one at most 1e-7 more than without. A float32 cannot come much closer to 1.
_KAGGLE_BOUND = 1e-7

# Where an id was read: a file, and the number of the record or line in it.
Place = tuple[str, int]

# A picture's number: the name of its file without zeros in front and extension. 18 digits fit any integer column.
_NUMBER = re.compile(r"(?:.*[/\\])?0*([0-9]{1,18})(?:\.[A-Za-z][A-Za-z0-9]*)?", re.DOTALL)

_SURROGATE = re.compile(r"[\ud800-\udfff]")  # Half of a pair: JSON can spell it, UTF-8 cannot.


def define_flags() -> None:
    """Defines --submission and --output_column for a script that writes the CSV."""
    flags.DEFINE_enum(
        "submission",
        "2017",
        list(FORMATS),
        "The format of the CSV. 2017: the id of each example, in the order of the input. kaggle: the columns id and "
        "label of Kaggle's competitions, where the id is the number of the picture (1 for 1.jpg), in the order of the "
        'numbers; for "Dogs vs. Cats Redux" keep the default of --output_column, for "Dogs vs. Cats" (2013) pass '
        "--output_column=category.",
        module_name="output",
    )
    flags.DEFINE_enum(
        "output_column",
        None,
        OUTPUT_COLUMNS,
        f"The second column of the CSV: category ({labels.DOG} = dog, {labels.CAT} = cat), or probability, the "
        "probability of a dog (0 to 1). Default: category; with --submission=kaggle: probability.",
        module_name="output",
    )


class Writer:
    """Writes the CSV, batch by batch. Call `finish` after the last batch.

    Args:
        output: an open text file that keeps "\\n" as it is, such as that of `files.atomic_write`. The header is written
            at once.
        output_column: one of OUTPUT_COLUMNS; None: the one that is usual for the format.
        submission_format: one of FORMATS.

    Attributes:
        num_cats: number of rows so far that are called cats.
        num_dogs: number of rows so far that are called dogs.
    """

    def __init__(self, output: TextIO, output_column: str | None = None, submission_format: str = "2017"):
        self._output_column = output_column or FORMATS[submission_format]
        if self._output_column not in OUTPUT_COLUMNS:
            raise ValueError(f"output_column={output_column}: must be one of {', '.join(OUTPUT_COLUMNS)}")
        self.num_cats = self.num_dogs = 0
        self._rows = csv.writer(output, lineterminator="\n")
        self._is_kaggle = submission_format == "kaggle"
        self._kaggle_rows: list[tuple[int, Any]] = []  # Kept until `finish` sorts them.
        self._rows.writerow(("id", "label") if self._is_kaggle else ("Id", self._output_column.capitalize()))

    @property
    def num_rows(self) -> int:
        """Number of rows so far, without the header."""
        return self.num_cats + self.num_dogs

    def write(self, ids: Sequence[str], probabilities: np.ndarray) -> None:
        """Writes one row for each example.

        Args:
            ids: the id of each example, as `id_text` returns it. `id_problem` must have found no problem.
            probabilities: probability of a dog, float [batch] or [batch, 1], in [0, 1].
        """
        dog = np.reshape(probabilities, [-1])
        is_dog = labels.is_dog(dog)
        if self._output_column == "category":
            column = np.where(is_dog, labels.DOG, labels.CAT).tolist()
        else:
            kept = np.clip(dog, _KAGGLE_BOUND, 1 - _KAGGLE_BOUND) if self._is_kaggle else dog
            column = probability_texts(kept)
        if self._is_kaggle:
            self._kaggle_rows += zip(map(kaggle_number, ids), column, strict=True)
        else:
            self._rows.writerows(zip(ids, column, strict=True))
        num_dogs = int(np.count_nonzero(is_dog))
        self.num_dogs += num_dogs
        self.num_cats += len(dog) - num_dogs

    def finish(self) -> None:
        """Writes the rows that wait for the last batch: Kaggle's are sorted by number."""
        self._rows.writerows(sorted(self._kaggle_rows))
        self._kaggle_rows = []


def probability_texts(probabilities: np.ndarray) -> list[str]:
    """Returns the shortest decimals that become the same float32 again, such as "0.99999994" or "1e-08".

    A very sure answer is rounded to exactly 0 or 1 in float32, and the log loss of a mistake would be infinite. These
    two are written so that they are the same as float32, but inside (0, 1) as float64.

    Args:
        probabilities: float [n], in [0, 1]. A float64 that is not a float32, as JSON can hold it, keeps all its digits.
    """
    texts = []
    for single, double in zip(probabilities.astype(np.float32), probabilities.astype(np.float64), strict=True):
        text = str(single if single == double else double)
        texts.append(_EXACTLY.get(text, text))
    return texts


def kaggle_number(example_id: str) -> int | None:
    """Returns the number of a picture for Kaggle, 12 for "test1/00012.jpg"; None if its id has none."""
    match = _NUMBER.fullmatch(example_id)
    return int(match[1]) if match else None


def id_text(example_id: bytes) -> str:
    """Returns an id as the CSV shows it. Bytes that are not UTF-8 become U+FFFD."""
    return example_id.decode("utf-8", "replace")


def id_problem(
    example_id: str,
    place: Place,
    first_places: dict[str | int, tuple[str, Place]],
    submission_format: str = "2017",
    unit: str = "record",
) -> str:
    """Returns why the CSV cannot have a row with an id, or "" if it can.

    Args:
        example_id: the id.
        place: where it was read.
        first_places: what must be unique, the id or for Kaggle its number, with the id and place where it came first.
            An id without problem is added.
        submission_format: one of FORMATS.
        unit: what the number in a place counts, for the message.
    """
    if not example_id:
        return "it has no id (image/filename is missing or empty)"
    if "\r" in example_id or "\n" in example_id:
        return "its id has a line break"
    if _SURROGATE.search(example_id):
        return "its id is not valid Unicode (it has half of a surrogate pair)"
    number = kaggle_number(example_id) if submission_format == "kaggle" else None
    if submission_format == "kaggle" and number is None:
        return "its id is not a number, such as 12.jpg, which --submission=kaggle needs"
    first_id, first = first_places.setdefault(example_id if number is None else number, (example_id, place))
    if first == place:
        return ""
    what = "its id came before" if first_id == example_id else f"its number is that of {first_id}, which came before"
    return f"{what}, in {first[0]}: {unit} {first[1]}"


class IdCheck:
    """Checks the ids of all rows, batch by batch, and knows where each was read.

    Args:
        places: where the ids of all rows were read, in the order of the rows.
        submission_format: one of FORMATS.
    """

    def __init__(self, places: Iterable[Place], submission_format: str = "2017"):
        self._places = iter(places)
        self._submission_format = submission_format
        self._first_places: dict[str | int, tuple[str, Place]] = {}

    def problems(self, example_ids: Iterable[str]) -> Iterator[tuple[Place, str, str]]:
        """Yields place, id and reason for each id of the next batch that the CSV cannot have.

        Must be read to its end before the next batch is checked.
        """
        for example_id, place in zip(example_ids, self._places, strict=False):  # `zip` takes an id before a place.
            reason = id_problem(example_id, place, self._first_places, self._submission_format)
            if reason:
                yield place, example_id, reason
