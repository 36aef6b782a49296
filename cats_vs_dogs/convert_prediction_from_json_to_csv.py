"""Turns the JSON lines of a batch prediction into the CSV that inference.py writes.

    python cats_vs_dogs/convert_prediction_from_json_to_csv.py \\
        --json_prediction_files_pattern='/tmp/batch/prediction-*/prediction.results-*' --csv_output_file=/tmp/out.csv

It reads the lines of the 2017 service
    {"image_id": "a.jpg", "class_indexes": [0, 1], "predictions": [0.2, 0.8]}
and those of Vertex AI, where "prediction" holds such an object, or bare probabilities if the model has one output:
    {"instance": {"b64": "<the record>"}, "prediction": [0.2, 0.8]}
"""

import base64
import csv
import json
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any

if __package__ in (None, ""):  # Run as a file: import the package beside this file, from whatever folder.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from absl import flags, logging

from cats_vs_dogs import files, utils

FLAGS = flags.FLAGS

DOG = 1

# A float32 sum of probabilities may end a little above 1; anything further away is no probability.
_ROUNDING = 1e-6


def define_flags() -> None:
    """Defines the flags of this script."""
    flags.DEFINE_string(
        "json_prediction_files_pattern",
        "",
        "Pattern of the files of a batch prediction, in quotes, such as '/tmp/batch/prediction.results-*'.",
    )
    flags.DEFINE_string("csv_output_file", "", "The CSV file to write, with a row for each photograph.")
    flags.DEFINE_enum(
        "output_column",
        "category",
        ["category", "probability"],
        "Second column of the CSV: the category (1 = dog, 0 = cat), or the probability of dog (0 to 1).",
    )


def main() -> None:
    """Converts the files that the flags name."""
    if not FLAGS.json_prediction_files_pattern:
        raise utils.UserError(
            "--json_prediction_files_pattern is empty; name the files of a batch prediction, such as "
            "--json_prediction_files_pattern='/tmp/batch/prediction.results-*'"
        )
    if not FLAGS.csv_output_file:
        raise utils.UserError("--csv_output_file is empty; name the file to write: --csv_output_file=/tmp/out.csv")
    num_rows = convert(FLAGS.json_prediction_files_pattern, FLAGS.csv_output_file, FLAGS.output_column)
    logging.info("%d predictions written to %s", num_rows, FLAGS.csv_output_file)


def convert(pattern: str, csv_output_file: str, output_column: str = "category") -> int:
    """Writes the CSV of all files that a pattern matches, whole or not at all.

    Args:
        pattern: pattern of the JSON lines files. Rows keep their order: files by name, then lines.
        csv_output_file: the file to write.
        output_column: "category" or "probability".

    Returns:
        The number of rows, without the header.

    Raises:
        UserError: if a line cannot be read, an id comes twice, or there is no row.
    """
    paths = _without_statistics(files.list_files(pattern, "json_prediction_files_pattern"), pattern)
    num_rows = 0
    with files.atomic_write(csv_output_file, "csv_output_file") as output:
        writer = csv.writer(output, lineterminator="\n")
        writer.writerow(("Id", output_column.capitalize()))
        for image_id, probability in read_predictions(paths):
            category = int(probability > 0.5)
            writer.writerow((image_id, category if output_column == "category" else format(probability, ".6f")))
            num_rows += 1
        if not num_rows:
            raise utils.UserError(
                f"--json_prediction_files_pattern={pattern}: the {len(paths)} files hold no prediction; "
                "look whether the batch prediction has ended well"
            )
    return num_rows


def _without_statistics(files: list[str], pattern: str) -> list[str]:
    """Leaves out the plain text that the services put beside the results."""
    statistics = [path for path in files if os.path.basename(path).startswith("prediction.errors_stats-")]
    if statistics:
        logging.info("not read, since they hold no predictions: %s", ", ".join(statistics))
    if len(statistics) == len(files):
        raise utils.UserError(
            f"--json_prediction_files_pattern={pattern}: matches only prediction.errors_stats files; "
            "end the pattern with prediction.results-*"
        )
    return [path for path in files if path not in statistics]


def read_predictions(files: Iterable[str]) -> Iterator[tuple[str, float]]:
    """Reads files of JSON lines, line by line.

    Args:
        files: their paths.

    Yields:
        (id of the photograph, probability in [0, 1] that it is a dog).

    Raises:
        UserError: naming the file and the line that cannot be read.
    """
    import tensorflow as tf

    seen: set[str] = set()
    for path in files:
        try:
            with tf.io.gfile.GFile(path, "rb") as file:
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        yield _read_line(line, seen, f"{path}, line {number}")
        except tf.errors.OpError as error:
            raise utils.UserError(f"{path}: cannot be read: {files.explain_error(error)}") from error


def _read_line(line: bytes, seen: set[str], where: str) -> tuple[str, float]:
    try:
        image_id, probability = parse_line(line)
        if image_id in seen:
            raise ValueError(f'the id "{image_id}" comes a second time; match the files of one job only')
    except ValueError as error:
        raise utils.UserError(f"{where}: {error}") from error
    seen.add(image_id)
    return image_id, probability


def parse_line(line: str | bytes) -> tuple[str, float]:
    """Reads one line of a prediction file, in any of the three shapes.

    Returns:
        (id of the photograph, probability in [0, 1] that it is a dog).

    Raises:
        ValueError: saying what is wrong with it.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error}); the file is damaged or no prediction: fetch it again") from error
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, like {{...}}, not {_short(row)}")
    if "error" in row:
        raise ValueError(f"the service could not predict it: {_short(row['error'])}; run the prediction again")
    prediction = row.get("prediction", row)
    if isinstance(prediction, dict):
        image_id = _unwrap(_get(prediction, "image_id"))
        indexes = _as_list(_get(prediction, "class_indexes"))
        values = _as_list(_get(prediction, "predictions"))
    else:  # The model has one output, the probabilities: the id is in the record that was sent.
        values = _as_list(prediction)
        indexes = [0, DOG] if len(values) == 2 else [DOG]
        image_id = _id_in_record(_get(row, "instance"))
    if not isinstance(image_id, str) or not image_id:
        raise ValueError(f"image_id: expected a text, not {_short(image_id)}")
    if "\r" in image_id or "\n" in image_id:
        raise ValueError(f"image_id: expected a text of one line, not {_short(image_id)}")
    image_id.encode("utf-8")  # Half a surrogate pair, which JSON can spell, is a ValueError here and not when written.
    return image_id, probability_of_dog(indexes, values)


def probability_of_dog(indexes: list, values: list) -> float:
    """Returns the probability in [0, 1] that it is a dog.

    Args:
        indexes: the class of each value, 0 = cat, 1 = dog, in any order; one of them is enough.
        values: the probability of each class.

    Raises:
        ValueError: if they are not that.
    """
    if len(indexes) != len(values):
        raise ValueError(f"class_indexes has {len(indexes)} values and predictions {len(values)}; expected as many")
    if any(type(index) is not int for index in indexes) or sorted(indexes) not in ([0], [DOG], [0, DOG]):
        raise ValueError(f"class_indexes: expected [0, 1], [1, 0], [0] or [1], not {_short(indexes)}")
    for value in values:
        # NaN, which Python's JSON reader lets pass, is not between them either.
        if type(value) not in (int, float) or not -_ROUNDING <= value <= 1 + _ROUNDING:
            raise ValueError(f"predictions: expected probabilities from 0 to 1, not {_short(value)}")
    by_class = dict(zip(indexes, values, strict=True))
    probability = by_class[DOG] if DOG in by_class else 1 - by_class[0]
    return min(max(float(probability), 0.0), 1.0)


def _get(row: Any, key: str) -> Any:
    if not isinstance(row, dict) or key not in row:
        raise ValueError(f'"{key}" is missing in {_short(row)}; is it a prediction of this kit\'s export?')
    return row[key]


def _unwrap(value: Any) -> Any:
    """Takes off the further list that some services put around a value."""
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value


def _as_list(value: Any) -> list:
    value = _unwrap(value)
    return value if isinstance(value, list) else [value]


def _id_in_record(instance: Any) -> str:
    """Returns `image/filename` of the record in {"b64": "<a serialized tf.train.Example>"}."""
    import tensorflow as tf
    from google.protobuf.message import DecodeError

    from cats_vs_dogs import tfrecords

    try:
        record = base64.b64decode(_get(instance, "b64"), validate=True)
        features = tf.train.Example.FromString(record).features.feature
    except (TypeError, ValueError, DecodeError) as error:
        raise ValueError(f"instance: the record in it cannot be read ({error})") from error
    for feature in (tfrecords.FILENAME, "image_id"):  # image_id: records that another tool wrote.
        if feature in features and features[feature].bytes_list.value:
            return features[feature].bytes_list.value[0].decode("utf-8")
    raise ValueError(f"instance: the record in it has no {tfrecords.FILENAME}, so the photograph has no id")


def _short(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except RecursionError:  # Lists within lists that could just be read.
        return "what it is"
    return text if len(text) <= 100 else f"{text[:100]}..."


if __name__ == "__main__":
    utils.run_script(main, define_flags)
