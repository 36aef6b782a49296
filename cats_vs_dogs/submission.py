"""The CSV of predictions: its columns and rows, and which ids it can hold.

Id,Category
1.jpg,1
2.jpg,0

inference.py writes it, and convert_prediction_from_json_to_csv.py writes the same file from the results of a batch
prediction. Does not import TensorFlow.
"""

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TextIO

import numpy as np
from absl import flags

from cats_vs_dogs import labels

# What the second column can hold; its title is the name with a capital letter.
OUTPUT_COLUMNS = ("category", "probability")

# Where an id was read: a file, and the number of the record or line in it.
Place = tuple[str, int]

_SURROGATE = re.compile(r"[\ud800-\udfff]")  # Half of a pair: JSON can spell it, UTF-8 cannot.


def define_output_column() -> None:
    """Defines --output_column for a script that writes the CSV."""
    flags.DEFINE_enum(
        "output_column",
        OUTPUT_COLUMNS[0],
        OUTPUT_COLUMNS,
        f"The second column of the CSV: category ({labels.DOG} = dog, {labels.CAT} = cat), or probability, the "
        "probability of a dog (0 to 1).",
        module_name="output",
    )


class Writer:
    """Writes the CSV, batch by batch.

    The csv module writes the rows: for batches of 1,024 rows, pandas needs 1.5 to 2 times as long.

    Args:
        output: an open text file that keeps "\\n" as it is, such as that of `files.atomic_write`. The header is written
            at once.
        output_column: one of OUTPUT_COLUMNS.

    Attributes:
        num_cats: number of rows so far that are called cats.
        num_dogs: number of rows so far that are called dogs.
    """

    def __init__(self, output: TextIO, output_column: str):
        if output_column not in OUTPUT_COLUMNS:
            raise ValueError(f"output_column={output_column}: must be one of {', '.join(OUTPUT_COLUMNS)}")
        self.num_cats = self.num_dogs = 0
        self._output_column = output_column
        self._rows = csv.writer(output, lineterminator="\n")
        self._rows.writerow(("Id", output_column.capitalize()))

    @property
    def num_rows(self) -> int:
        """Number of rows so far, without the header."""
        return self.num_cats + self.num_dogs

    def write(self, ids: Sequence[str], probabilities: np.ndarray) -> None:
        """Writes one row for each example.

        Args:
            ids: the id of each example, as `id_text` returns it.
            probabilities: probability of a dog, float [batch] or [batch, 1], in [0, 1].
        """
        dog = np.reshape(probabilities, [-1])
        is_dog = labels.is_dog(dog)
        if self._output_column == "category":
            column = np.where(is_dog, labels.DOG, labels.CAT).tolist()
        else:
            column = [f"{probability:.6f}" for probability in dog.tolist()]
        self._rows.writerows(zip(ids, column, strict=True))
        num_dogs = int(np.count_nonzero(is_dog))
        self.num_dogs += num_dogs
        self.num_cats += len(dog) - num_dogs


def id_text(example_id: bytes) -> str:
    """Returns an id as the CSV shows it. Bytes that are not UTF-8 become U+FFFD."""
    return example_id.decode("utf-8", "replace")


def id_problem(example_id: str, place: Place, first_places: dict[str, Place], unit: str = "record") -> str:
    """Returns why the CSV cannot have a row with an id, or "" if it can.

    Args:
        example_id: the id.
        place: where it was read.
        first_places: where each id was read first. An id without problem is added.
        unit: what the number in a place counts, for the message.
    """
    if not example_id:
        return "it has no id (image/filename is missing or empty)"
    if "\r" in example_id or "\n" in example_id:
        return "its id has a line break"
    if _SURROGATE.search(example_id):
        return "its id is not valid Unicode (it has half of a surrogate pair)"
    first = first_places.setdefault(example_id, place)
    return "" if first == place else f"its id came before, in {first[0]}: {unit} {first[1]}"


class IdCheck:
    """Checks the ids of all rows, batch by batch, and knows where each was read.

    Args:
        places: where the ids of all rows were read, in the order of the rows.
    """

    def __init__(self, places: Iterable[Place]):
        self._places = iter(places)
        self._first_places: dict[str, Place] = {}

    def problems(self, example_ids: Iterable[str]) -> Iterator[tuple[Place, str, str]]:
        """Yields place, id and reason for each id of the next batch that the CSV cannot have.

        Must be read to its end before the next batch is checked.
        """
        for example_id, place in zip(example_ids, self._places, strict=False):  # `zip` takes an id before a place.
            reason = id_problem(example_id, place, self._first_places)
            if reason:
                yield place, example_id, reason
