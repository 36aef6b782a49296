"""The CSV of predictions: rows, counts, and ids that it cannot hold."""

import csv
import io
import subprocess
import sys
import time
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

from cats_vs_dogs import submission, tfrecords


def write(output_column, *batches, submission_format="2017"):
    output = io.StringIO()
    writer = submission.Writer(output, output_column, submission_format)
    for ids, probabilities in batches:
        writer.write(ids, probabilities)
    writer.finish()
    return writer, output.getvalue()


def test_rows_of_both_columns():
    ids = ["a.jpg", '고양이, "나비".jpg', "half", " b "]
    probabilities = np.array([[0.75], [0.2500004], [0.5], [0.50000006]], np.float32)
    writer, text = write("category", (ids[:1], probabilities[:1]), (ids[1:], probabilities[1:]))
    assert text == 'Id,Category\na.jpg,1\n"고양이, ""나비"".jpg",0\nhalf,0\n b ,1\n'
    assert (writer.num_rows, writer.num_cats, writer.num_dogs) == (4, 2, 2)
    _, text = write("probability", (ids, probabilities))
    assert text == 'Id,Probability\na.jpg,0.75\n"고양이, ""나비"".jpg",0.2500004\nhalf,0.5\n b ,0.50000006\n'


def test_probabilities_of_any_shape_and_precision():
    expected = "Id,Probability\na,0.1\nb,1e-12\n"
    for dtype in (np.float32, np.float64):
        for shape in ([2], [2, 1]):
            assert write("probability", (["a", "b"], np.reshape(np.array([0.1, 1e-12], dtype), shape)))[1] == expected


def test_no_rows():
    writer, text = write("category", ([], np.zeros([0, 1], np.float32)))
    assert text == "Id,Category\n"
    assert writer.num_rows == 0


def test_as_many_ids_as_probabilities():
    with pytest.raises(ValueError, match="zip"):
        write("category", (["a", "b"], np.array([0.5])))
    with pytest.raises(ValueError, match="^output_column=Category: must be one of category, probability"):
        write("Category")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_probability_comes_back_exactly(dtype):
    random = np.random.default_rng(0)
    all_bits = random.integers(0, np.float32(1).view(np.uint32) + 1, 100_000, np.uint32).view(np.float32)
    sigmoid = 1 / (1 + np.exp(-random.normal(0, 8, 100_000)))
    near_one = 1 - np.arange(1000) * 2.0**-24
    short = np.concatenate([np.arange(1001) / 1000, 10.0 ** -np.arange(38)])
    values = np.concatenate([all_bits, sigmoid, near_one, short]).astype(np.float32)
    values = values[(values > 0) & (values < 1)]
    assert len(values) > 190_000
    texts = submission.probability_texts(values.astype(dtype))
    assert np.array_equal(np.array([float(text) for text in texts]).astype(np.float32), values)
    assert [Decimal(text) for text in texts] == [Decimal(str(value)) for value in values]
    assert submission.probability_texts(values[:0]) == []


def test_a_probability_that_is_no_float32_keeps_its_digits():
    values = np.array([0.8, 0.123456789012, 1e-30, 0.5])
    assert submission.probability_texts(values) == ["0.8", "0.123456789012", "1e-30", "0.5"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_sure_answer_is_kept_apart_from_0_and_1(dtype):
    values = np.array([0, 1, np.nextafter(np.float32(0), np.float32(1)), 1 - 2**-24], dtype)
    texts = submission.probability_texts(values)
    assert texts == ["1e-46", "0.99999999", "1e-45", "0.99999994"]
    assert [np.float32(text) for text in texts] == values.tolist()  # Exactly, and yet:
    assert all(0 < float(text) < 1 for text in texts)


def test_ids_that_csv_readers_get_back():
    ids = [
        "a,b",
        'c"d',
        '"',
        " e ",
        "'",
        "\ufffd",
        "#",
        "007",
        "\t",
        "=1+1",
        "고양이.jpg",
        "\u2028",
        "\x85",
        "NA",
        ",",
        " ",
    ]
    _, text = write("category", (ids, np.zeros([len(ids)])))
    assert [row[0] for row in csv.reader(io.StringIO(text, newline=""))][1:] == ids
    assert pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)["Id"].tolist() == ids


def test_kaggle_wants_numbers_in_their_order_and_probabilities_inside_0_and_1():
    ids = ["test1/10.jpg", "00012.png", "1.jpg", "folder\\2.JPEG", "9", "0.jpg"]
    probabilities = np.array([0, 1, 0.99999994, 1e-8, 0.25, 0.75], np.float32)
    batches = [(ids[:4], probabilities[:4]), (ids[4:], probabilities[4:])]
    writer, text = write(None, *batches, submission_format="kaggle")
    assert text == "id,label\n0,0.75\n1,0.9999999\n2,1e-07\n9,0.25\n10,1e-07\n12,0.9999999\n"
    assert (writer.num_rows, writer.num_cats, writer.num_dogs) == (6, 3, 3)
    assert write("probability", *batches, submission_format="kaggle")[1] == text
    assert write(None, (ids, probabilities.astype(np.float64)), submission_format="kaggle")[1] == text
    _, text = write("category", *batches, submission_format="kaggle")
    assert text == "id,label\n0,1\n1,1\n2,0\n9,0\n10,0\n12,1\n"


def test_ids_without_a_number_and_numbers_that_come_twice():
    ids = [
        "a.jpg",
        "dog.1.jpg",
        "1.5",
        "1.5.jpg",
        "-1.jpg",
        "+1",
        " 1.jpg",
        "1 .jpg",
        "1.",
        ".jpg",
        "1/",
        "x1",
        "1e3",
        "1_0",
    ]
    ids += ["\u0661.jpg", "\uff11.jpg", "\u00b2", "1" * 19, "9" * 5000]
    for one in ids:
        reason = submission.id_problem(one, ("x", 1), {}, "kaggle")
        assert reason == "its id is not a number, such as 12.jpg, which --submission=kaggle needs", one
    first_places = {}
    assert submission.id_problem("1.jpg", ("x", 1), first_places, "kaggle") == ""
    assert submission.id_problem("1.jpg", ("x", 1), first_places, "kaggle") == ""  # The same place once more.
    assert submission.id_problem("1.jpg", ("x", 2), first_places, "kaggle") == "its id came before, in x: record 1"
    for one in ("1.png", "001.jpg", "test1/1.jpg", "1"):
        reason = submission.id_problem(one, ("y", 3), first_places, "kaggle")
        assert reason == "its number is that of 1.jpg, which came before, in x: record 1"
    assert submission.id_problem("9" * 18, ("y", 3), first_places, "kaggle") == ""
    assert submission.id_problem("", ("y", 4), first_places, "kaggle").startswith("it has no id")


def test_writing_is_quick():
    ids, probabilities = [f"{i}.jpg" for i in range(1024)], np.full([1024, 1], 0.25, np.float32)
    start = time.process_time()
    write("probability", *[(ids, probabilities)] * 100)
    assert time.process_time() - start < 2  # Takes 0.05 seconds.


def test_text_of_ids():
    assert submission.id_text("고양이.jpg".encode()) == "고양이.jpg"
    assert submission.id_text(b"\xff.jpg") == "\ufffd.jpg"


def test_problems_of_ids():
    first_places = {}
    assert submission.id_problem("a", ("x", 1), first_places) == ""
    assert submission.id_problem("a", ("x", 1), first_places) == ""  # The same place once more.
    assert submission.id_problem("a", ("y", 1), first_places) == "its id came before, in x: record 1"
    assert submission.id_problem("a", ("y", 1), first_places, unit="line") == "its id came before, in x: line 1"
    missing = submission.id_problem("", ("y", 2), first_places)
    assert missing == f"it has no id ({tfrecords.FILENAME} is missing or empty)"
    for line_break in ("\r", "\n", "\r\n"):
        assert submission.id_problem(f"b{line_break}", ("y", 3), first_places) == "its id has a line break"
    surrogate = submission.id_problem("b\ud83d", ("y", 4), first_places)
    assert surrogate == "its id is not valid Unicode (it has half of a surrogate pair)"
    assert submission.id_problem("\U0001f431", ("y", 5), first_places) == ""
    assert first_places == {"a": ("a", ("x", 1)), "\U0001f431": ("\U0001f431", ("y", 5))}


def test_a_check_takes_one_place_for_each_id():
    check = submission.IdCheck((path, number) for path in ("x", "y") for number in range(3))
    assert list(check.problems(["a", "b"])) == []
    assert list(check.problems([])) == []
    assert list(check.problems(["c", "a", ""])) == [
        (("y", 0), "a", "its id came before, in x: record 0"),
        (("y", 1), "", "it has no id (image/filename is missing or empty)"),
    ]
    assert list(check.problems(["c"])) == [(("y", 2), "c", "its id came before, in x: record 2")]


def test_no_heavy_import():
    code = "import sys, cats_vs_dogs.submission; assert not {'tensorflow', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/")
