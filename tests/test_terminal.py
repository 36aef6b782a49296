"""Progress bars and tables on a terminal."""

import datetime
import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest
from conftest import REPOSITORY

from cats_vs_dogs import metrics_log, terminal

CODE = """
import sys
from absl import logging
from cats_vs_dogs import terminal, utils

def main():
    with terminal.progress_bar(4, " photos", "counting", shown=sys.argv[1] == "shown") as bar:
        for number in range(4):
            bar.update()
            logging.warning("line %d, bar: %s", number, not bar.disable)
    logging.warning("after it")

utils.run_script(lambda rest: main(), lambda: None, pass_on_flags=True)
"""


REDRAWN = """
import types
from absl import logging
from cats_vs_dogs import terminal, utils

def main():
    times = [0.0, 0.0, 0.3, 0.3, 0.4, 0.4, 0.5, 0.5, 0.5, 0.5]  # Asked for once a step, and once a drawing.
    terminal.time = types.SimpleNamespace(monotonic=lambda: times.pop(0))
    line = terminal.RedrawnLine()
    for number in range(6):
        if not line.is_shown:
            logging.warning("step %d", number)
            continue
        line.show(["a" * 20, "b" * 20, "c" * (35 - 20 * (number % 2)), "d" * 40])
        if number == 2:
            logging.warning("saved")
    line.close()
    logging.warning("after it")

utils.run_script(lambda rest: main(), lambda: None, pass_on_flags=True)
"""


def said_on_a_terminal(argument, code=CODE, columns=80, **environment):
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    env = {"TERM": "xterm", **{k: v for k, v in os.environ.items() if k not in ("TERM", "NO_COLOR")}, **environment}
    subprocess.run([sys.executable, "-c", code, argument], cwd=REPOSITORY, stderr=slave, check=True, env=env)
    os.close(slave)
    said = b""
    try:
        while piece := os.read(master, 4096):
            said += piece
    except OSError:  # How Linux says that the other end is closed.
        pass
    os.close(master)
    return said.decode()


def test_a_bar_on_a_terminal_leaves_log_lines_whole():
    said = said_on_a_terminal("shown")
    assert "counting:   0%|" in said and "4/4" in said and " photos/s]" in said
    lines = [line.rpartition("\r")[2] for line in said.split("\r\n")]
    assert [line for line in lines if "line" in line] == [f"WARNING: line {i}, bar: True" for i in range(4)]
    assert "WARNING: after it" in lines


def test_no_bar_where_none_is_wanted_or_there_is_no_terminal():
    expected = [*(f"WARNING: line {i}, bar: False" for i in range(4)), "WARNING: after it"]
    assert said_on_a_terminal("hidden").splitlines() == expected
    process = subprocess.run([sys.executable, "-c", CODE, "shown"], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
    assert process.stderr.splitlines() == expected


A, B = "a" * 20, "b" * 20


def test_a_line_is_redrawn_and_log_lines_are_whole():
    said = said_on_a_terminal("", REDRAWN)
    # Steps 2 to 5 come too soon to be drawn at once, but 2 and 5 are the last ones before other lines.
    long, short = (f"\r{A}  {B}  {'c' * count}" for count in (35, 15))
    assert said == f"{long}{short}{' ' * 20}{long}\r\nWARNING: saved\r\n{short}\r\nWARNING: after it\r\n"


@pytest.mark.parametrize(("columns", "expected"), [(60, f"{A}  {B}"), (43, f"{A}  {B}"), (42, A), (9, "a" * 8)])
def test_the_line_fits_in_the_terminal(columns, expected):
    before_saved = said_on_a_terminal("", REDRAWN, columns).partition("\r\nWARNING: saved")[0]
    assert before_saved.split("\r")[-1].rstrip() == expected
    assert all(len(drawn) < columns for drawn in before_saved.split("\r"))


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"NO_COLOR": "1"}])
def test_terminals_that_want_plain_lines_get_them(environment):
    lines = said_on_a_terminal("", REDRAWN, **environment).splitlines()
    assert lines == [*(f"WARNING: step {number}" for number in range(6)), "WARNING: after it"]


CLOSED = """
import os, sys
from absl import logging
from cats_vs_dogs import terminal, utils

def main():
    line = terminal.RedrawnLine()
    assert line.is_shown
    os.close(int(sys.argv[1]))  # The terminal is closed; the program goes on.
    line.show(["a"])
    logging.warning("saved")
    line.close()
    print("done")

utils.run_script(lambda rest: main(), lambda: None, pass_on_flags=True)
"""


def test_a_program_goes_on_when_its_terminal_is_closed():
    master, slave = pty.openpty()
    env = {"TERM": "xterm", **{k: v for k, v in os.environ.items() if k not in ("TERM", "NO_COLOR")}}
    process = subprocess.Popen(
        [sys.executable, "-c", CLOSED, str(master)],
        cwd=REPOSITORY,
        env=env,
        stderr=slave,
        stdout=subprocess.PIPE,
        pass_fds=[master],
    )
    os.close(master)
    os.close(slave)
    assert process.communicate()[0] == b"done\n" and process.returncode == 0


def test_the_short_line_of_a_training_step():
    row = {"epoch": 120, "label_loss": 0.0432, "accuracy": 0.98112, "learning_rate": 0.000095}
    time_left = datetime.timedelta(hours=1, minutes=2, seconds=3)
    parts = metrics_log.short_training_line({**row, "examples_per_second": 104.6}, 190, 63, time_left)
    assert "  ".join(parts) == "epoch 120/190 63%  loss 0.043  acc 0.981  lr 9.5e-05  105 photos/s  1:02 h left"
    assert len("  ".join(parts)) <= 79
    *_, last = metrics_log.short_training_line(
        {**row, "examples_per_second": 1}, 190, 99, datetime.timedelta(seconds=67)
    )
    assert last == "1:07 left"


def test_a_table():
    rows = [["id", "", "count"], ["강아지.jpg", "dog", "7"], ["e\u0301.jpg", "cat", "12"], ["\x1b[31m", "cat", "1"]]
    assert terminal.table(rows, left=2) == [
        "id               count",
        "강아지.jpg  dog      7",  # Hangul takes two columns a character.
        "\xe9.jpg       cat     12",  # A letter and its accent take one.
        "\ufffd[31m       cat      1",  # What would change the colour of the terminal.
    ]


def test_a_table_is_complete_however_long_and_wide_it_is():
    rows = [["id", "probability"], *([f"{i}{'x' * 100}.jpg", "0.5000"] for i in range(200))]
    lines = terminal.table(rows)
    assert len(lines) == 201 and {len(line) for line in lines} == {len("199") + 100 + len(".jpg") + 2 + 11}
    assert lines[200] == f"199{'x' * 100}.jpg       0.5000"
