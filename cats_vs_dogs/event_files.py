"""Event files of TensorBoard: writing them, and removing the events that a resumed run will write again."""

import itertools
import os
import re
import socket
import time
from collections.abc import Iterable, Iterator

import numpy as np
import tensorflow as tf
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.plugins.histogram import metadata as histogram_metadata
from tensorboard.plugins.image import metadata as image_metadata
from tensorboard.plugins.scalar import metadata as scalar_metadata
from tensorboard.plugins.text import metadata as text_metadata
from tensorboard.util import tensor_util

from cats_vs_dogs import files

_SECONDS_BETWEEN_UPLOADS = 30  # to an object store
_SLICE = 2**18  # The number of values that a histogram looks at together: 2 MB as float64.
_file_numbers = itertools.count()


class EventFile:
    """Appends to a new event file in a folder.

    The file and its folder are made at the first write. On a local disk every event is in the file once it is written.
    On an object store events are uploaded together: by `flush`, and by a write that comes at least 30 seconds after
    the last upload. A write that fails raises an OSError or a TensorFlow error at once; see
    `files.explain_write_errors`.

    Args:
        folder: where the file will be.
        suffix: the end of the file's name. Writers that share a folder but are rewound separately need different
            suffixes, such as ".train"; see `rewind`.
    """

    def __init__(self, folder: str, suffix: str = ""):
        self._folder = folder
        self._suffix = suffix
        self._path = ""
        self._writer: tf.io.TFRecordWriter | None = None
        self._last_upload = 0.0
        self._described: set[str] = set()  # Tags whose description is in the file.

    def write(self, tag: str, tensor: np.ndarray | list[bytes], step: int, metadata: SummaryMetadata) -> None:
        """Writes a tensor for one of TensorBoard's plugins.

        Args:
            tag: the name that TensorBoard shows.
            tensor: of numbers or bytes, as the plugin expects it.
            step: the training step.
            metadata: names the plugin, from the plugin's create_summary_metadata. Its description is written with the
                first tensor of a tag only, which is the one that TensorBoard reads.
        """
        if self._writer is None:
            self._open()
        if tag in self._described:
            metadata.summary_description = ""
        self._described.add(tag)
        proto = tensor_util.make_tensor_proto(tensor)
        summary = Summary(value=[Summary.Value(tag=tag, tensor=proto, metadata=metadata)])
        self._write_event(Event(wall_time=time.time(), step=step, summary=summary))
        if not files.is_remote(self._path) or time.monotonic() - self._last_upload >= _SECONDS_BETWEEN_UPLOADS:
            self.flush()

    def scalar(self, tag: str, value: float, step: int, about: str = "") -> None:
        """Writes a number, as float32; `about` describes the chart."""
        self.write(tag, np.float32(value), step, scalar_metadata.create_summary_metadata(None, about))

    def histogram(
        self,
        tag: str,
        values: np.ndarray | Iterable[np.ndarray],
        step: int,
        counts: np.ndarray | None = None,
        num_buckets: int = 30,
        about: str = "",
    ) -> None:
        """Writes a histogram, which `about` describes; see `make_buckets` for the other arguments."""
        buckets = make_buckets(values, counts, num_buckets)
        self.write(tag, buckets, step, histogram_metadata.create_summary_metadata(None, about))

    def text(self, tag: str, markdown: str, step: int) -> None:
        """Writes a text, which TensorBoard renders as Markdown."""
        self.write(tag, np.array(markdown.encode(), object), step, text_metadata.create_summary_metadata(None, None))

    def image(self, tag: str, encoded: bytes, width: int, height: int, step: int, about: str = "") -> None:
        """Writes a picture as it was encoded.

        A JPEG of photos takes a tenth of the bytes of the PNG that tf.summary.image would write.

        Args:
            tag: the name that TensorBoard shows.
            encoded: a PNG or JPEG file.
            width: pixels.
            height: pixels.
            step: the training step.
            about: describes the picture.
        """
        tensor = [str(width).encode(), str(height).encode(), encoded]
        self.write(tag, tensor, step, image_metadata.create_summary_metadata(None, about))

    def graph(self, graph: tf.Graph, step: int) -> None:
        """Writes a graph, for the tab Graphs. It holds no weights."""
        if self._writer is None:
            self._open()
        graph_def = graph.as_graph_def().SerializeToString()
        self._write_event(Event(wall_time=time.time(), step=step, graph_def=graph_def))

    def flush(self) -> None:
        """Brings all written events to the file; on an object store this uploads them."""
        if self._writer is not None:
            self._writer.flush()
            self._last_upload = time.monotonic()

    @property
    def path(self) -> str:
        """The path of the file; "" before the first write."""
        return self._path

    def exists(self) -> bool:
        """Returns False if another process deleted the file; make a new EventFile then.

        Returns True before the first write. On an object store this costs a request.
        """
        return self._writer is None or files.exists(self._path)

    def _open(self) -> None:
        files.make_dirs(self._folder)
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_file_numbers)}"
        self._path = os.path.join(self._folder, name + self._suffix)
        self._writer = tf.io.TFRecordWriter(self._path)
        self._write_event(Event(wall_time=time.time(), file_version="brain.Event:2"))
        self._last_upload = time.monotonic()

    def _write_event(self, event: Event) -> None:
        self._writer.write(event.SerializeToString())


def make_buckets(
    values: np.ndarray | Iterable[np.ndarray], counts: np.ndarray | None = None, num_buckets: int = 30
) -> np.ndarray:
    """Counts values in buckets of equal width between the least and the greatest of them.

    The memory used is a few MB for any number of values. Values that are not finite are left out. If all values
    are equal, every bucket has width 0 and the last one counts them all, as with tf.summary.histogram.

    Args:
        values: one array of any shape, or several. Several are read twice, so pass a list and no generator.
        counts: how often each value occurs, [values.size], with one array only. None: once.
        num_buckets: the number of buckets.

    Returns:
        float64 [num_buckets, 3]: left edge, right edge, count. All 0 if there are no values.
    """
    ranges = [(part.min(), part.max()) for part in map(_finite, in_slices(values)) if part.size]
    if not ranges:
        return np.zeros([num_buckets, 3])
    lows, highs = zip(*ranges, strict=True)
    edges = np.linspace(min(lows), max(highs), num_buckets + 1)
    totals = np.zeros(num_buckets)
    if counts is not None:
        parts = [(np.asarray(values, np.float64).reshape(-1), counts)]
    else:
        parts = ((_finite(part), None) for part in in_slices(values))
    for part, weights in parts:
        if np.all(np.diff(edges) > 0):
            totals += np.histogram(part, num_buckets, (edges[0], edges[-1]), weights=weights)[0]
        else:
            totals[-1] += part.size if weights is None else np.sum(weights)
    return np.stack([edges[:-1], edges[1:], totals], axis=1)


def in_slices(values: np.ndarray | Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Yields the values of one or several arrays as flat slices of limited size. Contiguous arrays are not copied."""
    for array in [values] if isinstance(values, np.ndarray) else values:
        flat = np.asarray(array).reshape(-1)
        for start in range(0, flat.size, _SLICE):
            yield flat[start : start + _SLICE]


def _finite(values: np.ndarray) -> np.ndarray:
    as_float64 = values.astype(np.float64)
    return as_float64[np.isfinite(as_float64)]


def rewind(folder: str, last_step: int, suffix: str = "") -> None:
    """Removes events after a step, so that TensorBoard shows no step twice when a run resumes there.

    A file that has no event left is removed. A process that was killed may leave an incomplete event at the end of a
    file; TensorBoard skips it, and so does this function.

    Args:
        folder: where the event files are. Its other files stay as they are.
        last_step: the last step to keep; -1 removes every event.
        suffix: the suffix of the EventFile that wrote the files. Files with another suffix stay as they are.
            Older versions of the kit wrote ".v2", which counts as "".
    """
    ending = re.escape(suffix) if suffix else r"(\.v2)?"
    for path in files.list_matching(folder, rf"events\.out\.tfevents\..*\.\d+{ending}"):
        events = list(RawEventFileLoader(path).Load())  # Faster than tf.data, whose setup exceeds most files' reading.
        kept = [event for event in events if Event.FromString(event).step <= last_step]
        if len(kept) == len(events):
            continue
        if kept:
            _replace_events(path, kept)
        else:
            files.remove(path)


def _replace_events(path: str, events: list[bytes]) -> None:
    # On an object store an upload replaces the file when it is complete. Locally a temporary file does, whose name has
    # no "tfevents" in it: TensorBoard would read it.
    target = path if files.is_remote(path) else files.temporary_path(os.path.join(os.path.dirname(path), "cut"))
    with tf.io.TFRecordWriter(target) as writer:
        for event in events:
            writer.write(event)
    if target != path:
        files.replace(target, path)
