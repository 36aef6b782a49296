"""What interrupts training between two steps: Ctrl-C, SIGTERM, and the time for a checkpoint."""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator

import tensorflow as tf
from absl import logging


class StopRequest:
    """A request to stop training, made by a signal. It is true once the request was made.

    Attributes:
        requested: bool `tf.Variable`, whether the request was made. A graph that runs many steps reads it between two
            steps.
        signal_number: number of the signal that made the request; None if there was no request.
    """

    def __init__(self):
        self.requested = tf.Variable(False, trainable=False, name="stop")
        self.signal_number: int | None = None

    def __bool__(self) -> bool:
        return self.signal_number is not None

    def request(self, signal_number: int) -> None:
        """Requests a stop.

        A second signal ends the process at once if it is Ctrl-C. A second SIGTERM is ignored: some systems send two.

        Args:
            signal_number: `signal.SIGINT` for Ctrl-C, or `signal.SIGTERM`.
        """
        if self:
            if signal_number == signal.SIGINT:
                os._exit(128 + signal_number)
            return
        self.signal_number = signal_number
        self.requested.assign(True)
        name = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}[signal_number]
        logging.warning("%s: training stops after this step and saves. Ctrl-C again quits at once.", name)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Takes Ctrl-C and SIGTERM inside the block as requests to stop.

        Python runs a signal handler only between two of its own instructions: here, after all steps of a graph. The
        signal's number, however, is written to the wake-up socket at once, and a thread reads it from there.
        """
        receiver, sender = socket.socketpair()
        sender.setblocking(False)

        def listen() -> None:
            while number := receiver.recv(1):
                if number[0] in (signal.SIGINT, signal.SIGTERM):
                    self.request(number[0])

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        old_wakeup = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        old_handlers = {number: signal.signal(number, _do_nothing) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in old_handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(old_wakeup)
            sender.close()  # Ends the thread.
            thread.join()
            receiver.close()


class Alarm:
    """Interrupts the steps of a graph once a time has passed since `restart`.

    Args:
        seconds: that time; 0: never.

    Attributes:
        variable: bool `tf.Variable`, true once the time has passed, so that a graph of many steps sees it.
    """

    def __init__(self, seconds: float):
        self.variable = tf.Variable(False, trainable=False, name="alarm")
        self._seconds = seconds
        self._timer: threading.Timer | None = None
        self._start = time.monotonic()

    def restart(self) -> None:
        """Starts to count from now."""
        self.close()
        self._start = time.monotonic()
        if self._seconds:
            self._timer = threading.Timer(min(self._seconds, threading.TIMEOUT_MAX), self.variable.assign, [True])
            self._timer.daemon = True
            self._timer.start()

    def is_due(self) -> bool:
        """Whether the time has passed. If so, the next steps are interrupted after the first of them."""
        is_due = 0 < self._seconds <= time.monotonic() - self._start
        if is_due:
            self.variable.assign(True)  # The timer may be a little late.
        return is_due

    def close(self) -> None:
        """Ends counting."""
        if self._timer:
            self._timer.cancel()
            self._timer.join()
            self._timer = None
        self.variable.assign(False)


def _do_nothing(unused_number, unused_frame) -> None:
    """A signal handler. Python writes a signal's number to the wake-up socket only if the signal has a handler."""
