"""Event files of TensorBoard: writing them, and taking back what a run wrote after the checkpoint to go on from."""

import os

import tensorflow as tf
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader


def make_writer(folder: str) -> tf.summary.SummaryWriter:
    """Returns a writer of summaries, which are in its file when it is flushed, and else after half a minute or so.

    Not more often: on object stores the whole file is uploaded each time. To be used with `set_as_default`, since at
    the end of a block of `as_default` it is flushed.
    """
    return tf.summary.create_file_writer(folder, max_queue=1_000_000, flush_millis=30_000)


def cut(folder: str, last_step: int) -> None:
    """Removes what event files say of later steps, so that TensorBoard shows no step twice when they are done again.

    What a killed process wrote only half of, at the end of a file, TensorBoard leaves out by itself.

    Args:
        folder: where the event files are; other files are left alone.
        last_step: the last step that is kept; -1: nothing is.
    """
    for path in tf.io.gfile.glob(os.path.join(folder, "events.out.tfevents.*")):
        events = list(RawEventFileLoader(path).Load())  # A dataset takes longer to set up than most files to read.
        kept = [event for event in events if tf.compat.v1.Event.FromString(event).step <= last_step]
        if len(kept) == len(events):
            continue
        if not kept:
            tf.io.gfile.remove(path)
            continue
        aside = os.path.join(folder, f"cut.{os.getpid()}.tmp")  # Not a name that TensorBoard looks at.
        with tf.io.TFRecordWriter(aside) as writer:
            for event in kept:
                writer.write(event)
        tf.io.gfile.rename(aside, path, overwrite=True)
