"""Progress bars and tables on a terminal."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

from conftest import REPOSITORY

from cats_vs_dogs import terminal

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


def said_on_a_terminal(argument):
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
    subprocess.run([sys.executable, "-c", CODE, argument], cwd=REPOSITORY, stderr=slave, check=True)
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
