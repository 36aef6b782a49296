"""The CSV of predictions: rows, counts, and ids that it cannot hold."""

import csv
import io
import subprocess
import sys
import time

import numpy as np
import pytest

from cats_vs_dogs import submission, tfrecords


def write(output_column, *batches):
    output = io.StringIO()
    writer = submission.Writer(output, output_column)
    for ids, probabilities in batches:
        writer.write(ids, probabilities)
    return writer, output.getvalue()


def test_rows_of_both_columns():
    ids = ["a.jpg", '고양이, "나비".jpg', "half", " b "]
    probabilities = np.array([[0.75], [0.2500004], [0.5], [0.50000006]], np.float32)
    writer, text = write("category", (ids[:1], probabilities[:1]), (ids[1:], probabilities[1:]))
    assert text == 'Id,Category\na.jpg,1\n"고양이, ""나비"".jpg",0\nhalf,0\n b ,1\n'
    assert (writer.num_rows, writer.num_cats, writer.num_dogs) == (4, 2, 2)
    _, text = write("probability", (ids, probabilities))
    assert text == 'Id,Probability\na.jpg,0.750000\n"고양이, ""나비"".jpg",0.250000\nhalf,0.500000\n b ,0.500000\n'


def test_probabilities_of_any_shape_and_precision():
    expected = "Id,Probability\na,0.100000\nb,1.000000\n"
    for dtype in (np.float32, np.float64):
        for shape in ([2], [2, 1]):
            assert write("probability", (["a", "b"], np.reshape(np.array([0.1, 1], dtype), shape)))[1] == expected


def test_no_rows():
    writer, text = write("category", ([], np.zeros([0, 1], np.float32)))
    assert text == "Id,Category\n"
    assert writer.num_rows == 0


def test_as_many_ids_as_probabilities():
    with pytest.raises(ValueError, match="zip"):
        write("category", (["a", "b"], np.array([0.5])))
    with pytest.raises(ValueError, match="^output_column=Category: must be one of category, probability"):
        write("Category")


def test_ids_that_csv_readers_get_back():
    ids = ["a,b", 'c"d', " e", "'", "\ufffd", "#", "0", "\t"]
    _, text = write("category", (ids, np.zeros([len(ids)])))
    assert [row[0] for row in csv.reader(io.StringIO(text))][1:] == ids


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
    assert submission.id_problem("a", ("y", 1), first_places, "line") == "its id came before, in x: line 1"
    missing = submission.id_problem("", ("y", 2), first_places)
    assert missing == f"it has no id ({tfrecords.FILENAME} is missing or empty)"
    for line_break in ("\r", "\n", "\r\n"):
        assert submission.id_problem(f"b{line_break}", ("y", 3), first_places) == "its id has a line break"
    surrogate = submission.id_problem("b\ud83d", ("y", 4), first_places)
    assert surrogate == "its id is not valid Unicode (it has half of a surrogate pair)"
    assert submission.id_problem("\U0001f431", ("y", 5), first_places) == ""
    assert first_places == {"a": ("x", 1), "\U0001f431": ("y", 5)}


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
