"""Every path may be gs://: the scripts run on a stand-in for Cloud Storage, through TensorFlow's own client."""

import json
import re
import shutil
import signal

import pytest
from conftest import REPOSITORY, forked_python, jpeg, run_scripts, values_of, write_shards
from fake_gcs import FakeGcs

from cats_vs_dogs import checkpoints


@pytest.fixture
def gcs():
    with FakeGcs(b={}) as server:
        yield server


def upload(gcs, folder, prefix):
    for path in folder.rglob("*"):
        if path.is_file():
            gcs.put("b", f"{prefix}/{path.relative_to(folder)}", path.read_bytes())


def commands(root, pictures):
    """Returns what a user types from photos to a CSV, with every path below `root`, and shards below `pictures`."""
    model = f"--train_dir={root}/model"
    train = [f"--train_data_pattern={root}/shards/train-*", f"--eval_data_pattern={root}/shards/validation-*", model]
    train += ["--num_epochs=3", "--batch_size=8", "--image_size=16", "--log_steps=3", "--save_checkpoint_secs=0"]
    predict = [f"--input_data_pattern={root}/test/test-*", model, "--output_column=probability"]
    return {
        "photos": ["convert_images_to_tfrecords", f"--images={pictures}/photos.zip", f"--output_dir={root}/shards"],
        "test": ["convert_images_to_tfrecords", f"--images={pictures}/test", f"--output_dir={root}/test"],
        "train": ["train", *train],
        "eval": ["eval", f"--eval_data_pattern={root}/shards/validation-*", model, "--run_once"],
        "inference": ["inference", *predict, f"--output_file={root}/out/probabilities.csv"],
        "pictures": ["inference", f"--input_data_pattern={pictures}/test/*.jpg", model],
        "export": ["export_model", model, f"--export_dir={root}/exports/mine"],
        "json": [
            "convert_prediction_from_json_to_csv",
            f"--json_prediction_files_pattern={pictures}/results/prediction.results-*",
            f"--csv_output_file={root}/from_json.csv",
        ],
        "batch": [
            "batch_predict",
            f"--model_dir={root}/exports/mine",
            f"--input_data_pattern={root}/test/test-*",
            f"--output_path={root}/batch",
        ],
        "batch_csv": [
            "convert_prediction_from_json_to_csv",
            f"--json_prediction_files_pattern={root}/batch/prediction.results-*",
            f"--csv_output_file={root}/from_batch.csv",
        ],
    }


@pytest.fixture
def pictures(tmp_path):
    """A folder with what the commands begin with."""
    folder = tmp_path / "pictures"
    for split, names in (("photos", [f"{'cat' if i % 2 else 'dog'}.{i}.jpg" for i in range(60)]), ("test", "abc")):
        (folder / split).mkdir(parents=True)
        for i, name in enumerate(names):
            name = name if "." in name else f"{name}.jpg"
            (folder / split / name).write_bytes(jpeg(colour=(130, 128, 126) if i % 2 else (124, 126, 128), seed=i))
    (folder / "photos" / "cat.bad.jpg").write_bytes(b"no picture")
    shutil.make_archive(str(folder / "photos"), "zip", folder / "photos")
    (folder / "results").mkdir()
    line = '{"image_id": "%d.jpg", "class_indexes": [0, 1], "predictions": [0.2, 0.8]}\n'
    (folder / "results" / "prediction.results-0").write_text("".join(line % i for i in range(9)))
    return folder


def comparable(files, root):
    """What must be the same wherever it was written: names without times and processes, contents without paths."""
    kept = {}
    for name, data in files.items():
        if name.endswith("report.html"):  # It shows the time and the command.
            data = data[data.index(b"</main>") :] if b"</main>" in data else b"incomplete"
        if "events.out" in name or name.endswith(("run.json", "/", "fingerprint.pb", "saved_model.pb")):
            data = b""
        if name.endswith("metrics.jsonl"):
            data = re.sub(rb', "(time|examples_per_second|waiting_for_data)": [^,}]+', b"", data)
        kept[re.sub(r"(tfevents)\..*", r"\1", name)] = data.replace(root.encode(), b"")
    return {name: data for name, data in kept.items() if not name.endswith("/")}


@pytest.mark.slow
def test_photos_on_gs_are_trained_on_as_those_on_the_local_disk(run_script, gcs, pictures, tmp_path):
    upload(gcs, pictures, "pictures")
    flags = ["--num_epochs=1", "--batch_size=8", "--image_size=8", "--noreport", "--export_model_steps=0"]
    places = [f"{pictures}/photos", "gs://b/pictures/photos", "gs://b/pictures/photos.zip"]
    scripts = [
        ["train", f"--train_data_pattern={place}", f"--train_dir={tmp_path}/{i}", *flags]
        for i, place in enumerate(places)
    ]
    words = ["gs://b/pictures/test/a.jpg", f"{pictures}/test/", "gs://b/pictures/test"]
    scripts += [["inference", f"--train_dir={tmp_path}/0", *words]]
    process = run_scripts(run_script, scripts, env={**gcs.environment(), "XDG_CACHE_HOME": str(tmp_path / "cache")})
    assert process.stderr.count("0 re-encoded, 1 skipped; see ") == len(places)
    assert "6 photos: " in process.stdout
    first, *others = (values_of(checkpoints.require_checkpoint(str(tmp_path / str(i)))) for i in range(len(places)))
    for other in others:
        assert all(value.tobytes() == other[name].tobytes() for name, value in first.items() if "rogress" not in name)


@pytest.mark.slow
def test_a_killed_chain_on_gs_ends_as_one_on_the_local_disk(run_script, gcs, pictures, tmp_path):
    local, remote = tmp_path / "local", "gs://b/all [1]"
    (local / "out").mkdir(parents=True)
    upload(gcs, pictures, "pictures [1]")
    of_user = set(gcs.buckets["b"])
    gcs.fail_every(97)  # TensorFlow waits about a second before it asks again.
    asked = commands(remote, "gs://b/pictures [1]")
    plan = json.dumps({"kill": "save", "count": 2, "num_devices": 1})
    begun = [asked["photos"], asked["test"], ["killed_train", plan, *asked["train"][1:]]]
    killed = run_scripts(run_script, begun, env=gcs.environment(), check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    rest = [asked[name] for name in asked if name not in ("photos", "test")]
    rest += commands(local, pictures).values()
    said = run_scripts(run_script, rest, env=gcs.environment()).stderr
    assert f"Resuming from {remote}/model/model.ckpt-7." in said
    assert "not as an uninterrupted run would" not in said
    assert len(gcs.requests) > 485  # Of which five were refused.

    expected = {str(path.relative_to(local)): path.read_bytes() for path in local.rglob("*") if path.is_file()}
    written = {name.removeprefix("all [1]/"): data for name, data in gcs.buckets["b"].items() if name not in of_user}
    expected, written = comparable(expected, str(local)), comparable(written, remote)
    assert sorted(written) == sorted(expected)
    assert [name for name in expected if written[name] != expected[name]] == []
    assert written["model/metrics.jsonl"].count(b'"kind": "evaluation"') == 3
    assert {"model/predictions.csv", "out/probabilities.csv", "shards/bad_images.csv", "from_json.csv"} <= set(written)
    assert written["from_batch.csv"].startswith(b"Id,Category\n") and written["from_batch.csv"].count(b"\n") == 4
    assert "batch/prediction.errors_stats-00000-of-00001" in written


@pytest.mark.slow
def test_how_many_requests_a_training_run_makes(run_script, gcs, tmp_path):
    """A few for each shard, checkpoint and export; none for steps and records."""
    runs = {
        "first": (40, 4, []),
        "longer": (400, 4, ["--num_epochs=3"]),  # 120 steps and 400 records.
        # 14 shards, read again in each epoch; an export after 4 of the 8 steps, and a checkpoint after each.
        "more": (40, 14, ["--cache=none", "--export_model_steps=4", "--save_checkpoint_secs=0.000001"]),
    }
    scripts = []
    for name, (num_examples, num_shards, flags) in runs.items():
        write_shards(tmp_path / name, "train", num_examples, num_shards)
        upload(gcs, tmp_path / name, f"data/{name}")
        where = [f"--train_data_pattern=gs://b/data/{name}/train-*", f"--train_dir=gs://b/model/{name}"]
        common = ["--batch_size=10", "--image_size=8", "--log_steps=1", "--save_checkpoint_secs=0", "--num_epochs=2"]
        scripts.append(["train", *where, *common, *flags])
    run_scripts(run_script, scripts, env=gcs.environment())
    asked = [set(re.findall(r"(?:data|model)%2F\w+", path)) for _, path, _ in gcs.requests]
    first, longer, more = (
        [sum(f"{kind}%2F{name}" in names for names in asked) for kind in ("data", "model")] for name in runs
    )
    assert sum(first) < 90  # The last of them list folders, to name what was written.
    assert longer == first
    assert [count - of_first for count, of_first in zip(more, first, strict=True)] == [
        3 * 10 + 14,  # Its size, its lengths, its records; the records of the second epoch.
        20 + 7 * 16 + 3 * 3,  # One more export; seven more checkpoints, of which three are deleted again.
    ]


@pytest.fixture
def said_of(run_script, gcs):
    """Returns a function that runs scripts which must fail, with a bucket "closed", and returns what they said."""
    gcs.buckets["closed"] = {"model/model_flags.json": b"{}"}
    gcs.fault = lambda number, path, offset: 403 if "/closed" in path else None

    def run(scripts):
        process = run_scripts(run_script, scripts, env=gcs.environment(), check=False)
        assert "Traceback" not in process.stderr, process.stderr
        return re.findall("^error: (.*)", process.stderr, re.MULTILINE)

    return run


def test_buckets_that_are_not_there_or_closed_are_named_in_one_line(said_of, tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "cat.1.jpg").write_bytes(jpeg())
    scripts, expected = [], []
    for bucket, reason in (
        ("gone", "404: The specified bucket does not exist."),
        ("closed", "403: as ordered (log in"),
    ):
        where = f"gs://{bucket}/model"
        scripts += [
            ["train", f"--train_dir={tmp_path}/{bucket}", f"--train_data_pattern={where}/train-*"],
            ["train", f"--train_dir={where}", f"--train_data_pattern={tmp_path}/pictures"],
            ["convert_images_to_tfrecords", f"--images={tmp_path}/pictures", f"--output_dir={where}"],
            ["convert_images_to_tfrecords", f"--images={where}/p.zip", f"--output_dir={tmp_path}/s"],
        ]
        expected += [
            f"--train_data_pattern={where}/train-*: cannot be listed: Cloud Storage answered {reason}",
            f"--train_dir={where}: cannot be written to: Cloud Storage answered {reason}",
            f"--output_dir={where}: cannot be written to: Cloud Storage answered {reason}",
            f"--images={where}/p.zip: cannot be downloaded: Cloud Storage answered {reason}",
        ]
    scripts += [["eval", "--train_dir=gs://closed/model"], ["eval", "--train_dir=gs://gone/model"]]
    expected += ["--train_dir=gs://closed/model: cannot be read: Cloud Storage answered 403: as ordered (log in"]
    expected += ["--train_dir=gs://gone/model: holds no model"]
    said = said_of(scripts)
    assert len(said) == len(expected)
    for line, beginning in zip(said, expected, strict=True):
        assert line.startswith(beginning)


def test_patterns_on_gs(run_script, gcs, tmp_path):
    """They mean the same as on this machine."""
    names = ["d/1.jpg", "d/a/2.jpg", "d/a/b/3.jpg", "d [1]/4.jpg", "d [1]/x/5.jpg", "d1/6.jpg", "d [1]/IMG [7].jpg"]
    gcs.buckets["b"] = dict.fromkeys(names, b"x")
    expected = {
        "d/*.jpg": "1",
        "d/*": "1",
        "d/**/*.jpg": "123",
        "d/**": "123",
        "d/**/b/*": "3",
        "*/**/[36].jpg": "36",
        "d [1]/*.jpg": "4]",
        "d [1]/**/[45].jpg": "45",
        "d[1]/*": "6",
        "d [1]/IMG [7].jpg": "]",
    }
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); from cats_vs_dogs.files import *\n"
        "for one in sys.argv[1:]: print(*list_files(one, 'x'), sep='|')"
    )
    command = [*forked_python(), str(script)]
    process = run_script("", *(f"gs://b/{pattern}" for pattern in expected), command=command, env=gcs.environment())
    found = ["".join(sorted(path[-5] for path in line.split("|"))) for line in process.stdout.splitlines()]
    assert dict(zip(expected, found, strict=True)) == expected
