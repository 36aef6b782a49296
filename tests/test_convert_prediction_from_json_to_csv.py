"""The converter from JSON predictions to the CSV, on lines of the three formats that it reads."""

import base64
import gzip
import json
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import jpeg

from cats_vs_dogs import convert_prediction_from_json_to_csv as converter
from cats_vs_dogs import tfrecords
from cats_vs_dogs.utils import UserError


def line_2017(image_id, indexes, values):
    return json.dumps({"image_id": image_id, "class_indexes": indexes, "predictions": values})


def line_vertex(image_id, indexes, values):
    prediction = {"image_id": image_id, "class_indexes": indexes, "predictions": values}
    return json.dumps({"instance": record(image_id), "prediction": prediction})


def line_one_output(image_id, prediction):
    return json.dumps({"instance": record(image_id), "prediction": prediction})


def record(image_id):
    return {"b64": base64.b64encode(tfrecords.make_example(jpeg(), image_id, None)).decode()}


@pytest.fixture
def convert(tmp_path):
    """Returns a function that writes files of lines and returns their CSV."""

    def run(files, output_column=None, submission_format="2017"):
        for name, lines in files.items():
            (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        output = tmp_path / "out.csv"
        converter.convert(str(tmp_path / "prediction.*"), str(output), output_column, submission_format)
        return output.read_text(encoding="utf-8")

    return run


@pytest.mark.parametrize(
    "line",
    [
        line_2017("a.jpg", [0, 1], [0.25, 0.75]),
        line_2017("a.jpg", [1, 0], [0.75, 0.25]),
        line_2017("a.jpg", [1], [0.75]),
        line_2017("a.jpg", [0], [0.25]),
        line_2017("a.jpg", 1, 0.75),
        line_2017(["a.jpg"], [[0, 1]], [[0.25, 0.75]]),
        line_vertex("a.jpg", [0, 1], [0.25, 0.75]),
        line_vertex("a.jpg", [1, 0], [0.75, 0.25]),
        line_one_output("a.jpg", [0.25, 0.75]),
        line_one_output("a.jpg", [[0.25, 0.75]]),
        line_one_output("a.jpg", [0.75]),
        line_one_output("a.jpg", 0.75),
    ],
)
def test_every_format_has_id_and_probability_of_a_dog(line):
    assert converter.parse_line(line) == ("a.jpg", 0.75)


def test_rows_keep_the_order_of_files_and_lines(convert):
    files = {
        "prediction.results-00001-of-00002": [line_2017("1.jpg", [0, 1], [0.1, 0.9])],
        "prediction.results-00000-of-00002": [
            line_2017("9.jpg", [0, 1], [0.9, 0.1]),
            "",
            line_2017("half.jpg", [0, 1], [0.5, 0.5]),
        ],
        "prediction.errors_stats-00000-of-00001": ["this is no JSON"],
    }
    assert convert(files) == "Id,Category\n9.jpg,0\nhalf.jpg,0\n1.jpg,1\n"


def test_probability_column_and_quotes(convert):
    lines = [line_vertex('고양이, "나비".jpg', [0, 1], [0.75, 0.25]), line_vertex("b.jpg", [1], [1.0000001])]
    expected = 'Id,Probability\n"고양이, ""나비"".jpg",0.25\nb.jpg,0.99999999\n'
    assert convert({"prediction.results-0": lines}, "probability") == expected


def test_probabilities_keep_their_digits(convert):
    exact = float(np.float32(0.8))  # 0.800000011920929, as batch_predict.py writes it.
    values = [exact, 0.8, 0.9999999403953552, 0.123456789012, 1e-12, 1]
    lines = [line_2017(str(number), [0, 1], [1 - value, value]) for number, value in enumerate(values)]
    rows = convert({"prediction.results-0": lines}, "probability").splitlines()[1:]
    assert rows == ["0,0.8", "1,0.8", "2,0.99999994", "3,0.123456789012", "4,1e-12", "5,0.99999999"]


def test_kaggle(convert, tmp_path):
    files = {
        "prediction.results-0": [line_2017("test1/10.jpg", [0, 1], [0, 1]), line_2017("00002.png", [1, 0], [0.4, 0.6])],
        "prediction.results-1": [line_vertex("1", [0, 1], [0.25, 0.75])],
    }
    assert convert(files, None, "kaggle") == "id,label\n1,0.75\n2,0.4\n10,0.9999999\n"
    assert convert(files, "category", "kaggle") == "id,label\n1,1\n2,0\n10,1\n"
    (tmp_path / "out.csv").write_text("older")
    for image_id, message in (
        ("cover.jpg", "its id is not a number, such as 12.jpg, which --submission=kaggle needs; fix the id"),
        (
            "2.jpg",
            f"its number is that of 00002.png, which came before, in {tmp_path}/prediction.results-0: line 2; fix",
        ),
        ("1", f"its id came before, in {tmp_path}/prediction.results-1: line 1; match the files of one job only"),
    ):
        with pytest.raises(UserError) as error:
            convert({"prediction.results-2": [line_2017(image_id, [1], [0.5])]}, None, "kaggle")
        assert str(error.value).startswith(f'{tmp_path}/prediction.results-2: line 1 ("{image_id}"): {message}')
        assert (tmp_path / "out.csv").read_text() == "older"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"image_id": "a"', "not JSON"),
        ("\ufffd", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1, 2]", "expected a JSON object"),
        ('{"class_indexes": [0, 1], "predictions": [0.5, 0.5]}', '"image_id" is missing'),
        ('{"image_id": "b", "predictions": [0.5, 0.5]}', '"class_indexes" is missing'),
        ('{"image_id": "b", "class_indexes": [0, 1]}', '"predictions" is missing'),
        ('{"prediction": [0.5, 0.5]}', '"instance" is missing'),
        ('{"instance": "b.jpg", "prediction": [0.5, 0.5]}', '"b64" is missing'),
        ('{"instance": {"b64": "!"}, "prediction": [0.5, 0.5]}', "cannot be read"),
        ('{"instance": {"b64": "AAAA"}, "prediction": [0.5, 0.5]}', "cannot be read"),
        ('{"instance": {"b64": ""}, "prediction": [0.5, 0.5]}', "it has no id (image/filename is missing or empty)"),
        (line_one_output("b", [0.2, 0.3, 0.5]), "class_indexes has 1 values and predictions 3"),
        (line_one_output("b", "dog"), "expected probabilities"),
        (line_2017(7, [0, 1], [0.5, 0.5]), "image_id: expected a string, not 7"),
        (line_2017("\ud800", [0, 1], [0.5, 0.5]), "its id is not valid Unicode"),
        (line_2017("b\rc", [0, 1], [0.5, 0.5]), r'("b\rc"): its id has a line break; fix the id in its record'),
        (line_2017("b\nc", [0, 1], [0.5, 0.5]), "its id has a line break"),
        (line_2017("", [0, 1], [0.5, 0.5]), "line 2: it has no id (image/filename is missing or empty)"),
        (line_2017("b", [0, 1], [0.5, 0.5])[:-9], "not JSON"),
        (line_2017("b", [0, 1], [1e999, 0.5]), "from 0 to 1, not Infinity"),
        (line_2017("b", [0, 1], {"cat": 0.5}), "class_indexes has 2 values and predictions 1"),
        (line_2017("b", [0, 1], [0.5]), "class_indexes has 2 values and predictions 1"),
        (line_2017("b", [0.5, 0.5], [0, 1]), "class_indexes: expected"),
        (line_2017("b", [1, 1], [0.5, 0.5]), "class_indexes: expected"),
        (line_2017("b", [0, 2], [0.5, 0.5]), "class_indexes: expected"),
        (line_2017("b", [False, True], [0.5, 0.5]), "class_indexes: expected"),
        (line_2017("b", [], []), "class_indexes: expected"),
        (line_2017("b", [0, 1], [float("nan"), 0.5]), "from 0 to 1, not NaN"),
        (line_2017("b", [0, 1], ["0.5", 0.5]), "from 0 to 1"),
        (line_2017("b", [1], [3.2]), "from 0 to 1, not 3.2"),
        ('{"instance": {"b64": ""}, "error": {"status": "x", "message": "too big"}}', "too big"),
        (line_2017("a", [0, 1], [0.5, 0.5]), "prediction.results-0: line 1; match the files of one job only"),
    ],
)
def test_an_unreadable_line_is_named_and_nothing_is_written(convert, tmp_path, line, message):
    (tmp_path / "out.csv").write_text("older")
    with pytest.raises(UserError) as error:
        convert({"prediction.results-0": [line_2017("a", [0, 1], [0.5, 0.5]), line]})
    assert f"{tmp_path / 'prediction.results-0'}: line 2" in str(error.value)
    assert message in str(error.value)
    assert len(str(error.value)) < 500
    assert (tmp_path / "out.csv").read_text() == "older"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "prediction.results-0"]


def test_deeply_nested_lists_are_an_error_in_one_line():
    for depth in range(900, 1000):  # Python reads about 1,000 levels, and writes fewer.
        with pytest.raises(ValueError, match="not JSON|is missing in"):
            converter.parse_line('{"x": ' + "[" * depth + "]" * depth + "}")


@pytest.mark.parametrize(
    "content",
    [
        gzip.compress(line_2017("a", [1], [0.5]).encode()),
        "\n".join([line_2017("a", [1], [0.5])] * 2).encode("utf-16"),
        json.dumps([json.loads(line_2017("a", [1], [0.5]))]).encode(),
        json.dumps(json.loads(line_2017("a", [1], [0.5])), indent=4).encode(),
        b"Id,Category\na,1\n",
    ],
    ids=["gzip", "UTF-16", "a list", "indented", "CSV"],
)
def test_files_that_do_not_hold_lines_of_json(tmp_path, content):
    (tmp_path / "results").write_bytes(content)
    with pytest.raises(UserError, match="/results: line 1: .*unpacked, with one prediction in each line, or fetch a"):
        converter.convert(str(tmp_path / "results"), str(tmp_path / "out.csv"))


def test_the_csv_replaces_no_input(convert, tmp_path):
    line = line_2017("a", [1], [0.5])
    (tmp_path / "prediction.0").write_text(line)
    (tmp_path / "folder").mkdir()
    for output in (f"{tmp_path}/prediction.0", f"{tmp_path}/folder/../prediction.0"):
        with pytest.raises(UserError, match=f"^--csv_output_file={output}: is one of the input files; name another"):
            converter.convert(str(tmp_path / "pred*"), output)
    assert (tmp_path / "prediction.0").read_text() == line


def test_an_empty_file_among_others_is_no_error(convert, tmp_path):
    (tmp_path / "prediction.results-1").write_bytes(b"")
    assert convert({"prediction.results-0": [line_2017("a", [0, 1], [0.5, 0.5])]}) == "Id,Category\na,0\n"
    (tmp_path / "prediction.results-0").write_bytes(b"")
    with pytest.raises(UserError, match="the 2 files hold no prediction"):
        convert({})


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"prediction.results-0": [""]}, "hold no prediction"),
        ({"prediction.errors_stats-0": ["x"]}, "matches only prediction.errors_stats files"),
        ({}, "matches no file"),
    ],
)
def test_no_rows_is_an_error(convert, tmp_path, files, message):
    with pytest.raises(UserError, match=message):
        convert(files)
    assert not (tmp_path / "out.csv").exists()


def test_many_lines_are_quick(convert):
    lines = [line_2017(f"{i}.jpg", [0, 1], [0.25, 0.75]) for i in range(100_000)]
    start = time.perf_counter()
    assert convert({"prediction.results-0": lines}).count("\n") == 100_001
    assert time.perf_counter() - start < 20  # Takes less than a second.


def test_a_file_that_cannot_be_read(convert, tmp_path):
    (tmp_path / "prediction.results-1").symlink_to(tmp_path / "gone")
    message = f"^{tmp_path}/prediction.results-1: cannot be read: .*No such file.*; fetch it again, or leave it out"
    with pytest.raises(UserError, match=message):
        convert({"prediction.results-0": [line_2017("a", [0, 1], [0.5, 0.5])]})
    assert not (tmp_path / "out.csv").exists()


def test_ids_in_records_are_those_of_inference():
    encoded = tfrecords.make_example(jpeg(), "c.jpg", None).replace(b"c.jpg", b"\xff.jpg")
    line = json.dumps({"instance": {"b64": base64.b64encode(encoded).decode()}, "prediction": 0.75})
    assert converter.parse_line(line) == ("\ufffd.jpg", 0.75)


def test_local_files_with_ids_need_no_tensorflow(tmp_path):
    (tmp_path / "prediction.results-0").write_text(line_vertex("a.jpg", [0, 1], [0.4, 0.6]) + "\n")
    code = (
        "import sys\n"
        "from cats_vs_dogs import convert_prediction_from_json_to_csv as converter\n"
        f"assert converter.convert('{tmp_path}/pred*', '{tmp_path}/out.csv') == 1\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/")


def test_the_script(run_script, fails_in_one_line, tmp_path):
    (tmp_path / "prediction.results-0").write_text(line_2017("a.jpg", [0, 1], [0.4, 0.6]) + "\n")
    script, pattern = "convert_prediction_from_json_to_csv", f"--json_prediction_files_pattern={tmp_path}/pred*"
    process = run_script(script, pattern, f"--csv_output_file={tmp_path}/out.csv")
    assert (tmp_path / "out.csv").read_text() == "Id,Category\na.jpg,1\n"
    assert "1 predictions written" in process.stderr
    assert "--csv_output_file=: is empty; name the file to write" in fails_in_one_line(script, pattern)
    assert "--json_prediction_files_pattern=: is empty; name the result files" in fails_in_one_line(script)
