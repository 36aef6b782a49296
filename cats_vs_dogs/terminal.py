"""What is shown to whoever sits in front of a terminal: progress bars and tables."""

import contextlib
import logging as python_logging
import sys
import unicodedata
from collections.abc import Iterator, Sequence

from absl import logging
from tqdm import tqdm


@contextlib.contextmanager
def progress_bar(total: int | None, unit: str, description: str | None = None, shown: bool = True) -> Iterator[tqdm]:
    """Shows a progress bar on stderr if that is a terminal; log lines within the block stand above it.

    Args:
        total: how many units there will be. None: not known.
        unit: what is counted, such as " photos".
        description: what is being done.
        shown: False: there is no bar in any case.

    Yields:
        The bar: `update(n)` when n more units are done; `disable` is true if there is none.
    """
    handler = logging.get_absl_handler()
    with tqdm(total=total, unit=unit, desc=description, disable=not (shown and sys.stderr.isatty())) as bar:

        def clear(unused_record: python_logging.LogRecord) -> bool:
            bar.clear()  # Its next update draws it again, below the line.
            return True

        handler.addFilter(clear)
        try:
            yield bar
        finally:
            handler.removeFilter(clear)


def table(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Returns the lines of a table: columns as wide as their widest cell, two spaces between them.

    Args:
        rows: the cells, the header first.
        left: how many columns, the first ones, are aligned on the left; the others are on the right.
    """
    rows = [[_printable(cell) for cell in row] for row in rows]
    widths = [max(map(_width, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = []
        for number, (cell, width) in enumerate(zip(row, widths, strict=True)):
            padding = " " * (width - _width(cell))
            cells.append(cell + padding if number < left else padding + cell)
        lines.append("  ".join(cells).rstrip())
    return lines


def _printable(text: str) -> str:
    """Returns a text without what would move the cursor or change colours: names of files may have anything in them."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def _width(text: str) -> int:
    """Returns how many columns of a terminal a text takes: Hangul and the like take two each."""
    widths = ((0 if unicodedata.combining(one) else 1 + (unicodedata.east_asian_width(one) in "WF")) for one in text)
    return sum(widths)
