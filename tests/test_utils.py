"""How scripts end, and files that are whole or absent."""

import subprocess
import sys
import textwrap

import pytest
from conftest import REPOSITORY

from cats_vs_dogs import files, utils
from cats_vs_dogs.utils import UserError


@pytest.mark.parametrize(
    ("ending", "code", "said"),
    [
        ("pass", 0, ""),
        ("raise utils.UserError('a\\n  b')", 1, "error: a b\n"),
        ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(9)", 143, ""),
        ("os.kill(os.getpid(), signal.SIGINT); time.sleep(9)", 130, ""),
    ],
)
def test_exit_codes(tmp_path, ending, code, said):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
            import os, signal, time
            from cats_vs_dogs import files, utils

            def main():
                with files.atomic_write({str(tmp_path / "out.csv")!r}, "output_file") as output:
                    output.write("x")
                    {ending}

            utils.run_script(main, lambda: None)
        """)
    )
    process = subprocess.run([sys.executable, str(script)], cwd=REPOSITORY, capture_output=True, text=True)
    assert process.returncode == code, process.stderr
    assert process.stderr.endswith(said)
    assert "Traceback" not in process.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == (["script.py"] if code else ["out.csv", "script.py"])


def test_a_json_file_is_whole_or_absent(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(str(path), {"a": 1})
    with pytest.raises(TypeError):
        files.write_json(str(path), {"a": object()})
    assert files.read_json(str(path)) == {"a": 1}
    assert [one.name for one in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(UserError, match="the folder .*/gone does not exist; make it first"):
        files.write_json(str(tmp_path / "gone" / "a.json"), {})


def test_errors_about_writing_are_one_line():
    import tensorflow as tf

    message = r"^--train_dir=x: cannot be written to: .*nowhere.*; what was saved before is intact"
    with pytest.raises(UserError, match=message), files.explain_write_errors("x", "train_dir"):
        tf.io.gfile.rename("/nowhere/a", "/nowhere/b")
    # What the input pipeline raises is not about writing.
    with pytest.raises(tf.errors.InvalidArgumentError), files.explain_write_errors("x", "train_dir"):
        tf.io.decode_jpeg(b"")


def test_the_train_dir_of_a_job(monkeypatch, fails_in_one_line, tmp_path):
    names = ("AIP_CHECKPOINT_DIR", "AIP_MODEL_DIR", "AIP_TENSORBOARD_LOG_DIR")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    assert utils.default_train_dir() == utils.TRAIN_DIR
    for name in reversed(names):  # The first that is set counts.
        monkeypatch.setenv(name, f"gs://bucket/{name}/")
        assert utils.default_train_dir() == f"gs://bucket/{name}/"
    for name in names:
        monkeypatch.setenv(name, str(tmp_path))
    assert fails_in_one_line("eval", "--run_once").startswith(f"error: --train_dir={tmp_path}: holds no model")
    assert "--train_dir=/elsewhere: " in fails_in_one_line("eval", "--run_once", "--train_dir=/elsewhere")


def test_whether_an_output_can_be_written_is_tried_without_a_trace(tmp_path):
    files.check_output_file(str(tmp_path / "out.csv"), "output_file")
    assert not list(tmp_path.iterdir())
    (tmp_path / "out.csv").write_text("older")
    files.check_output_file(str(tmp_path / "out.csv"), "output_file")
    assert (tmp_path / "out.csv").read_text() == "older" and len(list(tmp_path.iterdir())) == 1
    for path, reason in ((tmp_path, "is a folder"), (tmp_path / "gone" / "out.csv", "the folder .* does not exist")):
        with pytest.raises(UserError, match=f"^--output_file={path}: {reason}"):
            files.check_output_file(str(path), "output_file")


@pytest.mark.parametrize(
    ("group_files", "expected"),
    [
        ({}, 9_216_000),
        ({"memory.max": "max", "memory.current": "5000"}, 9_216_000),
        ({"memory.max": "8000", "memory.current": "5000"}, 3_000),
        ({"memory.max": "8000", "memory.current": "9000"}, 0),
        (
            {
                "memory.max": "8000",
                "memory.current": "5000",
                "memory.stat": "anon 7\ninactive_file 900\nactive_file 50\n",
            },
            3_950,
        ),
        (
            {
                "memory/memory.limit_in_bytes": "8000",
                "memory/memory.usage_in_bytes": "5000",
                "memory/memory.stat": "inactive_file 1\ntotal_inactive_file 900\ntotal_active_file 50\n",
            },
            3_950,
        ),
        ({"memory.max": "99000000", "memory.current": "0", "memory.stat": ""}, 9_216_000),
    ],
)
def test_free_memory_counts_cached_files_as_free(tmp_path, group_files, expected):
    contents = {f"sys/fs/cgroup/{name}": text for name, text in group_files.items()}
    contents["proc/meminfo"] = "MemTotal: 20000 kB\nMemAvailable:   9000 kB\nHugePages_Total: 0\n"
    for name, text in contents.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert utils.free_memory(str(tmp_path)) == expected


def test_free_memory_where_nothing_says_it(tmp_path):
    assert utils.free_memory(str(tmp_path)) == 4 * 2**30
