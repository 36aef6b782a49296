"""Progress bars and tables for people at a terminal."""

import contextlib
import logging as python_logging
import sys
import unicodedata
from collections.abc import Iterator, Sequence

from absl import logging
from tqdm import tqdm


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
