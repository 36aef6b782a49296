"""Converts the JSON lines of a batch prediction to the CSV that inference.py writes.

    python cats_vs_dogs/convert_prediction_from_json_to_csv.py \\
        --json_prediction_files_pattern='/tmp/batch/prediction-*/prediction.results-*' --csv_output_file=/tmp/out.csv

It reads the lines of the 2017 service:
    {"image_id": "a.jpg", "class_indexes": [0, 1], "predictions": [0.2, 0.8]}
In the lines of Vertex AI and batch_predict.py, "prediction" holds such an object. It holds bare probabilities if the
model has one output:
    {"instance": {"b64": "<the record>"}, "prediction": [0.2, 0.8]}
"""

import base64
import csv
import io
import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any

if __package__ in (None, ""):  # Run as a file: import the package beside this file, from whatever folder.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    import cats_vs_dogs  # noqa: F401 - Says in one line that the kit is not installed.

import numpy as np
from absl import flags, logging

from cats_vs_dogs import files, submission, utils
from cats_vs_dogs.labels import CAT, DOG, is_dog
from cats_vs_dogs.path_flags import define_path

FLAGS = flags.FLAGS

# A float32 sum of probabilities can be slightly above 1. Any value further away is no probability.
_ROUNDING = 1e-6

_LINES_ADVICE = (
    "name result files of a batch prediction, unpacked, with one prediction in each line, or fetch a damaged file again"
)

_BATCH_SIZE = 1024  # Rows that are written at once.


def define_flags() -> None:
    """Defines the flags of this script."""
    define_path(
        "json_prediction_files_pattern",
        "",
        "Pattern of the result files of one batch prediction, in quotes, such as '/tmp/batch/prediction.results-*'.",
        module_name="data",
    )
    define_path("csv_output_file", "", "The CSV file to write, with one row for each prediction.", module_name="output")
    submission.define_flags()
    flags.register_validator(
        "json_prediction_files_pattern",
        bool,
        "is empty; name the result files of a batch prediction, such as '/tmp/batch/prediction.results-*'",
    )
    flags.register_validator("csv_output_file", bool, "is empty; name the file to write, such as /tmp/out.csv")


def main() -> None:
    """Converts the files that the flags name."""
    pattern, output_file = FLAGS.json_prediction_files_pattern, FLAGS.csv_output_file
    if files.is_remote(pattern) or files.is_remote(output_file):
        utils.import_tensorflow()
    num_rows = convert(pattern, output_file, FLAGS.output_column, FLAGS.submission)
    logging.info("%d predictions written to %s", num_rows, output_file)
    logging.info("done")


def convert(
    pattern: str, csv_output_file: str, output_column: str | None = None, submission_format: str = "2017"
) -> int:
    """Writes the predictions in all files that a pattern matches to a CSV file, which appears when it is complete.

    Args:
        pattern: pattern of the JSON lines files. Rows keep their order: files by name, then lines.
        csv_output_file: the file to write.
        output_column: one of submission.OUTPUT_COLUMNS; None: the one that is usual for the format.
        submission_format: one of submission.FORMATS.

    Returns:
        The number of rows, without the header.

    Raises:
        UserError: if a line cannot be read, an id is used twice, or no file holds a prediction.
    """
    logging.info("Looking for prediction files with pattern: %s", pattern)
    paths = _without_statistics(files.list_files(pattern, "json_prediction_files_pattern"), pattern)
    logging.info("Found files: %s", paths)
    files.check_not_input(csv_output_file, "csv_output_file", paths)
    logging.info("Writing submission file to: %s", csv_output_file)
    with files.atomic_write(csv_output_file, "csv_output_file") as output:
        writer = submission.Writer(output, output_column, submission_format)
        predictions = read_predictions(paths, submission_format)
        while batch := list(itertools.islice(predictions, _BATCH_SIZE)):
            ids, probabilities = zip(*batch, strict=True)
            writer.write(ids, np.array(probabilities))
        writer.finish()
        if not writer.num_rows:
            raise utils.UserError(
                f"--json_prediction_files_pattern={pattern}: the {len(paths)} files hold no prediction; "
                "check that the batch prediction succeeded"
            )
    return writer.num_rows


def get_csv_header() -> str:
    """Returns the first line of the CSV."""
    return "Id,Category\n"


def to_csv_row(json_data: dict[str, Any]) -> str:
    """Returns the line of the CSV for a line of JSON.

    Args:
        json_data: the line, read as JSON; the module docstring shows its formats.

    Raises:
        ValueError: if it is in no such format; says why.
    """
    image_id, probability = _parse_row(json_data)
    row = io.StringIO()
    csv.writer(row, lineterminator="\n").writerow((image_id, int(is_dog(probability))))
    return row.getvalue()


def _without_statistics(paths: list[str], pattern: str) -> list[str]:
    """Returns the files of results: the services also write plain text files about errors to the same folder."""
    statistics = [path for path in paths if os.path.basename(path).startswith("prediction.errors_stats-")]
    if statistics:
        logging.info("not read, since they hold no predictions: %s", ", ".join(statistics))
    if len(statistics) == len(paths):
        raise utils.UserError(
            f"--json_prediction_files_pattern={pattern}: matches only prediction.errors_stats files; "
            "end the pattern with prediction.results-*"
        )
    return [path for path in paths if path not in statistics]


def read_predictions(paths: Iterable[str], submission_format: str = "2017") -> Iterator[tuple[str, float]]:
    """Reads files of JSON lines, line by line.

    Args:
        paths: the files.
        submission_format: one of submission.FORMATS, whose CSV must be able to hold the ids.

    Yields:
        (id of the photo, probability of a dog in [0, 1]).

    Raises:
        UserError: if a line cannot be read; names its file and number.
    """
    first_places: dict[str | int, tuple[str, submission.Place]] = {}
    for path in paths:
        logging.info("processing file: %s", path)
        for number, line in enumerate(_read_lines(path), start=1):
            if not line.strip():
                continue
            try:
                image_id, probability = parse_line(line)
            except ValueError as error:
                raise utils.UserError(f"{path}: line {number}: {error}") from error
            problem = submission.id_problem(image_id, (path, number), first_places, submission_format, "line")
            if problem:
                advice = (
                    "match the files of one job only"
                    if problem.startswith("its id came before")
                    else "fix the id in its record and predict again"
                )
                name = f" ({_short(image_id)})" if image_id else ""
                raise utils.UserError(f"{path}: line {number}{name}: {problem}; {advice}")
            yield image_id, probability


def _read_lines(path: str) -> Iterator[bytes]:
    try:
        if files.is_remote(path):
            import tensorflow as tf

            file = tf.io.gfile.GFile(path, "rb")
        else:
            file = open(path, "rb")  # noqa: SIM115 - closed by the next line.
        with file:
            yield from file
    except Exception as error:
        if not isinstance(error, files.file_errors()):
            raise
        raise utils.UserError(
            f"{path}: cannot be read: {files.explain_error(error)}; fetch it again, or leave it out of the pattern"
        ) from error


def parse_line(line: bytes | str) -> tuple[str, float]:
    """Reads one line of JSON.

    Args:
        line: in one of the formats that the module docstring shows.

    Returns:
        (id of the photo, probability of a dog in [0, 1]).

    Raises:
        ValueError: if the line is not in such a format; says why.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error}); {_LINES_ADVICE}") from error
    return _parse_row(row)


def _parse_row(row: Any) -> tuple[str, float]:
    """Does the same as `parse_line` for a line that has been read as JSON."""
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, like {{...}}, not {_short(row)}; {_LINES_ADVICE}")
    if "error" in row:
        raise ValueError(f"the service could not predict it: {_short(row['error'])}; run the prediction again")
    prediction = row.get("prediction", row)
    if isinstance(prediction, dict):
        image_id = _unwrap(_get(prediction, "image_id"))
        indexes = _as_list(_get(prediction, "class_indexes"))
        values = _as_list(_get(prediction, "predictions"))
    else:  # The model has one output, the probabilities. The id is in the record that was sent.
        values = _as_list(prediction)
        indexes = [CAT, DOG] if len(values) == 2 else [DOG]
        image_id = _id_in_record(_get(row, "instance"))
    if not isinstance(image_id, str):
        raise ValueError(f"image_id: expected a string, not {_short(image_id)}")
    return image_id, probability_of_dog(indexes, values)


def probability_of_dog(indexes: list, values: list) -> float:
    """Returns the probability of a dog, in [0, 1].

    Args:
        indexes: the class of each value, 0 = cat, 1 = dog: both in any order, or one of them.
        values: the probability of each class.

    Raises:
        ValueError: if they have other values or different lengths.
    """
    if len(indexes) != len(values):
        raise ValueError(
            f"class_indexes has {len(indexes)} values and predictions {len(values)}; expected the same number"
        )
    if any(type(index) is not int for index in indexes) or sorted(indexes) not in ([CAT], [DOG], [CAT, DOG]):
        raise ValueError(f"class_indexes: expected [0, 1], [1, 0], [0] or [1], not {_short(indexes)}")
    for value in values:
        # Python's JSON reader accepts NaN; the comparisons reject it.
        if type(value) not in (int, float) or not -_ROUNDING <= value <= 1 + _ROUNDING:
            raise ValueError(f"predictions: expected probabilities from 0 to 1, not {_short(value)}")
    by_class = dict(zip(indexes, values, strict=True))
    probability = by_class[DOG] if DOG in by_class else 1 - by_class[CAT]
    return min(max(float(probability), 0.0), 1.0)


def _get(row: Any, key: str) -> Any:
    if not isinstance(row, dict) or key not in row:
        raise ValueError(f'"{key}" is missing in {_short(row)}; is it a prediction of a model that this kit exported?')
    return row[key]


def _unwrap(value: Any) -> Any:
    """Returns the value inside lists of length 1: some services add such a list around each value."""
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value


def _as_list(value: Any) -> list:
    value = _unwrap(value)
    return value if isinstance(value, list) else [value]


def _id_in_record(instance: Any) -> str:
    """Returns `image/filename` of the record in {"b64": "<a serialized tf.train.Example>"}."""
    utils.import_tensorflow()
    import tensorflow as tf
    from google.protobuf.message import DecodeError

    from cats_vs_dogs import tfrecords

    try:
        record = base64.b64decode(_get(instance, "b64"), validate=True)
        features = tf.train.Example.FromString(record).features.feature
    except (TypeError, ValueError, DecodeError) as error:
        raise ValueError(f"instance: its record cannot be read ({error}); fetch the file again") from error
    for feature in (tfrecords.FILENAME, "image_id"):  # image_id: records that another tool wrote.
        if feature in features and features[feature].bytes_list.value:
            return submission.id_text(features[feature].bytes_list.value[0])
    return ""


def _short(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except RecursionError:  # Nested lists can be too deep to write though they could be read.
        return "a deeply nested value"
    return text if len(text) <= 100 else f"{text[:100]}..."


if __name__ == "__main__":
    utils.run_script(main, define_flags)
