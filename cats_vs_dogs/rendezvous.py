"""The workers of a cluster meet before TensorFlow starts, and compare what each tells about itself.

TensorFlow also waits for all workers, but it cannot be interrupted meanwhile and does not say whom it waits for. So the
chief first listens at its own address, and each other worker connects to it. A worker sends one line, [its number, what
it tells]. The chief answers with one line a second, {"missing": [addresses]}, and at last {"told": [...]}.
"""

import contextlib
import json
import os
import select
import socket
import time
from collections.abc import Sequence
from typing import Any

from absl import logging

from cats_vs_dogs.utils import UserError

_LOG_SECONDS = 10.0  # The period of lines about who is missing.
_LONGEST_SILENCE = 30.0  # Seconds after which a worker takes a silent chief for lost, and connects again.
_LONGEST_LINE = 2**24  # Bytes.
_MAX_SHOWN = 5  # Differences in a message.


def meet(addresses: Sequence[str], worker: int, about: dict[str, Any], timeout: float) -> list[dict[str, Any]]:
    """Waits until all workers are there. Ctrl-C and SIGTERM interrupt it at once.

    Args:
        addresses: "host:port" of each worker, the chief's first.
        worker: number of this worker.
        about: what it tells the others: values that JSON can hold, by name.
        timeout: how many seconds to wait, at most.

    Returns:
        What each worker tells, in the order of `addresses`.

    Raises:
        UserError: if an address or the port of this worker is not right, or somebody is missing after `timeout`.
    """
    waiting = _Waiting(timeout)
    with _listen(addresses[worker]) as listener:
        if worker == 0:
            return _wait_as_chief(listener, addresses, about, waiting)
        return _wait_for_chief(addresses[0], worker, about, waiting)


class _Waiting:
    """Says now and then who is missing, and ends the wait after `timeout` seconds."""

    def __init__(self, timeout: float):
        self._timeout = timeout
        self._start = time.monotonic()
        self._next_line = _LOG_SECONDS

    def go_on(self, missing: Sequence[str]) -> None:
        """Returns if there is time left.

        Args:
            missing: addresses of those that are not there yet.

        Raises:
            UserError: if the time is over.
        """
        seconds = time.monotonic() - self._start
        if seconds >= self._timeout:
            raise UserError(
                f"--join_timeout={self._timeout:g}: no answer from {', '.join(missing)} in that many seconds; start "
                "all workers, each with its own task in TF_CONFIG, check that it names the right addresses and that "
                "their ports are open, or give a longer --join_timeout"
            )
        if seconds >= self._next_line:
            self._next_line += _LOG_SECONDS
            logging.info("Waiting for %s: %.0f seconds so far, at most %g.", ", ".join(missing), seconds, self._timeout)


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f'TF_CONFIG: the address "{address}" is not like host:port; fix it on all workers')
    return host.strip("[]"), int(port)


def _listen(address: str) -> socket.socket:
    """Takes the port of this worker, so that two workers with the same one are noticed."""
    _, port = _split(address)
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        raise UserError(
            f"TF_CONFIG: port {port} of this worker, {address}, cannot be used: {os.strerror(error.errno)}; end the "
            "program that has it, or give this worker another port in the TF_CONFIG of all workers"
        ) from error


def _wait_as_chief(
    listener: socket.socket, addresses: Sequence[str], about: dict[str, Any], waiting: _Waiting
) -> list[dict[str, Any]]:
    """Waits for all others; does the same as `meet`."""
    told = {0: about}
    connections: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as stack:
        while len(told) < len(addresses):
            ready, _, _ = select.select([listener, *connections.values()], [], [], 1.0)
            for worker, connection in list(connections.items()):
                if connection in ready:  # A worker sends one line, so this is the connection's end. It will come again.
                    connections.pop(worker).close()
                    del told[worker]
            if listener in ready:
                connection, _ = listener.accept()
                stack.callback(connection.close)
                connection.settimeout(5)
                with contextlib.suppress(OSError, ValueError, TypeError):  # Some other program has connected.
                    worker, others = _read(connection)
                    if 0 < worker < len(addresses):
                        told[worker], connections[worker] = others, connection
            missing = [address for i, address in enumerate(addresses) if i not in told]
            for connection in connections.values():
                _send(connection, {"missing": missing})
            if missing:
                waiting.go_on(missing)
        everything = [told[i] for i in range(len(addresses))]
        for connection in connections.values():
            _send(connection, {"told": everything})
    return everything


def _read(connection: socket.socket) -> Any:
    with connection.makefile("rb") as lines:
        return json.loads(lines.readline(_LONGEST_LINE))


def _send(connection: socket.socket, message: Any) -> None:
    """Sends a line. If the other end is gone, that is noticed when its connection is read."""
    with contextlib.suppress(OSError):
        connection.sendall(json.dumps(message).encode() + b"\n")


def _wait_for_chief(chief: str, worker: int, about: dict[str, Any], waiting: _Waiting) -> list[dict[str, Any]]:
    """Waits for the chief, and with it for the others; does the same as `meet`."""
    address = _split(chief)
    while True:
        with (
            contextlib.suppress(OSError, ValueError, TypeError, KeyError),  # No chief yet, or something else is there.
            socket.create_connection(address, timeout=5) as connection,
            connection.makefile("rb") as lines,
        ):
            connection.settimeout(_LONGEST_SILENCE)
            connection.sendall(json.dumps([worker, about]).encode() + b"\n")
            while line := lines.readline(_LONGEST_LINE):
                answer = json.loads(line)
                if "told" in answer:
                    return answer["told"]
                waiting.go_on(answer["missing"])
        waiting.go_on([chief])
        time.sleep(0.5)


def check_same(told: Sequence[dict[str, Any]]) -> None:
    """Checks that all workers tell the same about themselves.

    Args:
        told: what each worker tells: values by name, such as {"--batch_size": 32}.

    Raises:
        UserError: if they do not; all workers get the same message.
    """
    differences = []
    for name in {name: None for one in told for name in one}:
        workers_of: dict[str, list[str]] = {}
        for number, one in enumerate(told, start=1):
            value = json.dumps(one[name]) if name in one else "missing"
            workers_of.setdefault(value, []).append(str(number))
        if len(workers_of) > 1:
            values = (f"{value} on worker {', '.join(workers)}" for value, workers in workers_of.items())
            differences.append(f"{name} is {' and '.join(values)}")
    if differences:
        more = f"; and {len(differences) - _MAX_SHOWN} more" if len(differences) > _MAX_SHOWN else ""
        raise UserError(
            f"the workers of the cluster differ (worker 1 is the chief): {'; '.join(differences[:_MAX_SHOWN])}{more}; "
            "start all with the same flags, code, data and versions, and with a --train_dir that they share"
        )
