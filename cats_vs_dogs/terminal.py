"""Progress bars, a line that is redrawn, and tables for people at a terminal."""

import contextlib
import logging as python_logging
import os
import sys
import time
import unicodedata
from collections.abc import Iterator, Sequence

from absl import logging
from tqdm import tqdm

_SECONDS_BETWEEN_DRAWINGS = 0.2


@contextlib.contextmanager
def progress_bar(total: int | None, unit: str, description: str | None = None, shown: bool = True) -> Iterator[tqdm]:
    """Shows a progress bar if stderr is a terminal. Log lines of the block appear above the bar.

    Args:
        total: the number of units to do; None if it is unknown.
        unit: what is counted, such as " photos".
        description: the text in front of the bar.
        shown: False never shows a bar.

    Yields:
        The bar. Call `update(n)` when n more units are done. Its `disable` is True if no bar is shown.
    """
    handler = logging.get_absl_handler()
    with tqdm(total=total, unit=unit, desc=description, disable=not (shown and sys.stderr.isatty())) as bar:

        def clear(unused_record: python_logging.LogRecord) -> bool:
            bar.clear()  # The next update draws the bar again, below the log line.
            return True

        handler.addFilter(clear)
        try:
            yield bar
        finally:
            handler.removeFilter(clear)


def shows_stdout_and_stderr() -> bool:
    """Whether stdout and stderr are both terminals, so that they are read together."""
    return sys.stdout.isatty() and sys.stderr.isatty()


def shows_short_lines() -> bool:
    """Whether log lines go to a terminal that can redraw a line.

    TERM=dumb or a NO_COLOR, whose users want plain lines, turn short lines off.
    """
    is_plain = os.environ.get("TERM") == "dumb" or bool(os.environ.get("NO_COLOR"))
    return sys.stderr.isatty() and not is_plain and logging.level_info()


def log_for_scripts(message: str, *args: object) -> None:
    """Logs a line of 2017 that scripts may read and that tells a person nothing: not to a terminal with short lines."""
    if not shows_short_lines():
        logging.info(message, *args)


class RedrawnLine:
    """A line at the bottom of the terminal that is drawn again and again. Log lines begin below it and leave it whole.

    Attributes:
        is_shown: whether there is such a line, see `shows_short_lines`. If not, `show` must not be called.
    """

    def __init__(self):
        self.is_shown = shows_short_lines()
        self._width = 0  # Of the text that is drawn.
        self._latest: Sequence[str] = ()  # What to draw next.
        self._last_drawn = -_SECONDS_BETWEEN_DRAWINGS
        if self.is_shown:
            logging.get_absl_handler().addFilter(self._end)

    def show(self, parts: Sequence[str]) -> None:
        """Draws the line. If it was drawn a moment ago, it is drawn at a later call, or before the next log line.

        Args:
            parts: they are joined with two spaces. Those that do not fit in the terminal, or in 79 columns, are left
                out, the last ones first.
        """
        self._latest = parts
        if time.monotonic() - self._last_drawn >= _SECONDS_BETWEEN_DRAWINGS:
            self._draw()

    def _draw(self) -> None:
        if not self._latest:
            return
        self._last_drawn = time.monotonic()
        try:
            columns = os.get_terminal_size(sys.stderr.fileno()).columns
        except OSError:
            columns = 0
        room = min(79, (columns or 80) - 1)  # A character in the last column would begin a new line.
        text, *others = self._latest
        for part in others:
            if len(text) + 2 + len(part) > room:
                break
            text += f"  {part}"
        text = text[:room]
        # Spaces cover the rest of a longer text.
        self._write(f"\r{text}{' ' * min(self._width - len(text), room - len(text))}")
        self._width, self._latest = len(text), ()

    def close(self) -> None:
        """Ends the line: what is written to the terminal later begins below it."""
        if self.is_shown:
            self._end()
            logging.get_absl_handler().removeFilter(self._end)

    def _end(self, unused_record: python_logging.LogRecord | None = None) -> bool:
        """Begins a new line below this one, if there is one; returns True: as a filter it lets all log records pass."""
        self._draw()
        if self._width:
            self._write("\n")
            self._width = 0
        return True

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):  # The terminal was closed. Like a log line, this does not end the program.
            sys.stderr.write(text)
            sys.stderr.flush()


def table(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Returns the lines of a text table.

    Args:
        rows: the cells, the header first. Characters that would move the cursor or change colours are replaced.
        left: number of columns that are aligned left, at least 1; the others, at least one, are aligned right.
    """
    import pandas as pd

    frame = pd.DataFrame([[_printable(cell) for cell in row] for row in rows])
    frame.iloc[:, : left - 1] += " "  # pandas aligns its index left, and puts one space after a column of it.
    with pd.option_context("display.unicode.east_asian_width", True):  # Hangul is two columns wide.
        text = frame.set_index(list(range(left))).to_string(header=False, index_names=False, sparsify=False)
    return [line.rstrip() for line in text.split("\n")]


def _printable(text: str) -> str:
    """Returns a text with accents composed, since pandas counts their parts, and control characters replaced."""
    composed = unicodedata.normalize("NFC", text)
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in composed)
