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
    assert free_memory(tmp_path, group_files) == expected


def free_memory(folder, group_files, own_groups=None):
    """What is free on a machine with 9,216,000 bytes and these control groups; `own_groups`: of this process."""
    contents = {f"sys/fs/cgroup/{name}": text for name, text in group_files.items()}
    contents["proc/meminfo"] = "MemTotal: 20000 kB\nMemAvailable:   9000 kB\nHugePages_Total: 0\n"
    if own_groups is not None:
        contents["proc/self/cgroup"] = own_groups
    for name, text in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return utils.free_memory(str(folder))


def group(version, name, limit, used, cached=0):
    """The files of a control group: a limit, what is used, and how much of it caches files."""
    if version == 1:
        files_of_group = {"limit_in_bytes": limit, "usage_in_bytes": used}
        files_of_group["stat"] = f"inactive_file 7\ntotal_inactive_file {cached}\ntotal_active_file 0\n"
        return {f"memory{name}/memory.{file}": str(text) for file, text in files_of_group.items()}
    files_of_group = {"max": limit, "current": used, "stat": f"inactive_file {cached}\nactive_file 0\n"}
    return {f"{name.strip('/')}/memory.{file}": str(text) for file, text in files_of_group.items()}


# As Slurm on version 1 and `systemd-run` on version 2 have them.
OWN_GROUPS = {
    1: "5:cpu,cpuacct:/other\n4:memory:/slurm/job_7/step_0\n1:name=systemd:/init.scope\n0::/init.scope\n",
    2: "0::/slurm/job_7/step_0\n",
}
NO_LIMIT = {1: 9223372036854771712, 2: "max"}
JOB, STEP = "/slurm/job_7", "/slurm/job_7/step_0"


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ([(STEP, 8000, 5000)], 3000),
        ([(STEP, 8000, 5000, 950)], 3950),
        ([(JOB, 8000, 5000), (STEP, None, 4000)], 3000),
        ([(JOB, 8000, 7500), (STEP, 8000, 100)], 500),
        ([(JOB, 8000, 1000), (STEP, 2000, 900)], 1100),
        ([("/slurm", 4000, 3000), (JOB, None, 10), (STEP, None, 10)], 1000),
        ([("", 600, 100), (STEP, 8000, 5000)], 500),
        ([("/slurm/job_8", 10, 10), ("/slurm/job_7/step_1", 10, 10), ("/init.scope", 10, 10)], 9_216_000),
        ([("", None, 10), ("/slurm", None, 10), (JOB, None, 10), (STEP, None, 10)], 9_216_000),
    ],
    ids=["own", "cached", "outer", "outer is full", "inner", "outermost", "container", "other groups", "no limit"],
)
def test_the_smallest_rest_of_all_groups_around_this_process_counts(tmp_path, version, groups, expected):
    group_files = {}
    for name, limit, *used in groups:
        group_files |= group(version, name, NO_LIMIT[version] if limit is None else limit, *used)
    assert free_memory(tmp_path, group_files, OWN_GROUPS[version]) == expected


def test_groups_of_both_versions_and_the_limit_that_slows_down(tmp_path):
    """Systemd's hybrid mode has version 1 for memory; MemoryHigh= of version 2 slows a process down before it ends."""
    both = group(1, "/job", 8000, 5000) | {f"unified/{name}": text for name, text in group(2, "job", 9000, 0).items()}
    assert free_memory(tmp_path / "both", both, "4:memory:/job\n0::/job\n") == 3000
    high = group(2, "/job", "max", 1000) | {"job/memory.high": "2500"}
    assert free_memory(tmp_path / "high", high, "0::/job\n") == 1500


@pytest.mark.parametrize("own_groups", ["", "no such line\n", "0::/\n", "0::/gone/job\n", "0::/../outside\n"])
def test_the_root_group_counts_if_the_own_one_is_not_there(tmp_path, own_groups):
    assert free_memory(tmp_path, group(2, "", 8000, 5000), own_groups) == 3000
    (tmp_path / "sys/fs/cgroup/memory.current").unlink()
    assert free_memory(tmp_path, {}, own_groups) == 9_216_000


def test_free_memory_where_nothing_says_it(tmp_path):
    assert utils.free_memory(str(tmp_path)) == 4 * 2**30
