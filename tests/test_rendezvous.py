"""Workers wait for each other before TensorFlow starts, say for whom, and compare what they tell."""

import concurrent.futures
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from conftest import REPOSITORY, free_ports

from cats_vs_dogs import rendezvous
from cats_vs_dogs.utils import UserError


@pytest.fixture
def addresses():
    return [f"127.0.0.1:{port}" for port in free_ports(3)]


def meet(addresses, workers=None, timeout=60):
    """Lets workers meet, each in a thread; returns what comes back in each, or its error."""

    def one(worker):
        try:
            return rendezvous.meet(addresses, worker, {"number": worker}, timeout)
        except UserError as error:
            return str(error)

    workers = range(len(addresses)) if workers is None else workers
    with concurrent.futures.ThreadPoolExecutor() as executor:
        return list(executor.map(one, workers))


def test_all_learn_what_each_tells(addresses):
    told = [{"number": worker} for worker in range(3)]
    assert meet(addresses) == [told] * 3
    assert meet(addresses, [2, 1, 0]) == [told] * 3  # Their ports are free again.


def test_who_does_not_come_is_named_by_all(addresses, monkeypatch, caplog):
    caplog.set_level("INFO", logger="absl")
    monkeypatch.setattr(rendezvous, "_LOG_SECONDS", 0.1)  # At each look: a loaded machine may look once only.
    first, third = meet(addresses, [0, 2], timeout=3)
    assert first.startswith(f"--join_timeout=3: no answer from {addresses[1]} in that many seconds; start all workers")
    assert third == first or third.startswith(f"--join_timeout=3: no answer from {addresses[0]} ")  # It gave up first.
    assert re.search(rf"Waiting for {addresses[1]}: [0-3] seconds so far, at most 3\.\n", caplog.text)
    (alone,) = meet(addresses, [1], timeout=1)
    assert alone.startswith(f"--join_timeout=1: no answer from {addresses[0]} ")


def test_one_that_went_away_is_waited_for_again(addresses):
    def come_and_go():
        address = ("127.0.0.1", int(addresses[0].split(":")[1]))
        for text in (b'[1, {"number": 9}]\n', b"GET / HTTP/1.1\r\n\r\n", b"[7, {}]\n", b"3\n", b"\xff\xfe\n", b""):
            with socket.create_connection(address) as connection:
                connection.sendall(text)
                time.sleep(0.1)

    with concurrent.futures.ThreadPoolExecutor() as executor:
        chief = executor.submit(meet, addresses, [0])
        for _ in range(100):
            try:
                come_and_go()
                break
            except ConnectionRefusedError:
                time.sleep(0.1)
        told = [{"number": worker} for worker in range(3)]
        assert meet(addresses, [1, 2]) == [told] * 2
        assert chief.result() == [told]


def test_another_program_at_the_chiefs_address_is_not_the_chief(addresses):
    with socket.create_server(("127.0.0.1", int(addresses[0].split(":")[1]))) as server:

        def answer():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(b"HTTP/1.1 400 Bad Request\n")

        threading.Thread(target=answer, daemon=True).start()
        (said,) = meet(addresses, [1], timeout=1)
        server.shutdown(socket.SHUT_RDWR)
    assert said.startswith(f"--join_timeout=1: no answer from {addresses[0]} ")


def test_a_busy_port_is_named(addresses):
    port = int(addresses[1].split(":")[1])
    with socket.create_server(("", port)):
        (said,) = meet(addresses, [1])
    assert said.startswith(f"TF_CONFIG: port {port} of this worker, {addresses[1]}, cannot be used: Address already in")


@pytest.mark.parametrize("address", ["host", "host:", ":2222", "host:x", "host:70000"])
def test_an_address_without_a_port(address):
    (said,) = meet(["127.0.0.1:2222", address], [1])
    assert said == f'TF_CONFIG: the address "{address}" is not like host:port; fix it on all workers'


@pytest.mark.parametrize("worker", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_wait_at_once(addresses, worker, number):
    code = f"""if True:
        import signal, sys
        sys.path[0] = {str(REPOSITORY)!r}
        from cats_vs_dogs import rendezvous
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, frame: sys.exit(128 + number))
        print("ready", flush=True)
        rendezvous.meet({addresses!r}, {worker}, {{}}, 600)
    """
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=os.environ)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.5)
    asked = time.monotonic()
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert time.monotonic() - asked < 30  # Not the ten minutes.


def test_what_differs_is_said_with_the_values_and_the_workers():
    same = {"--batch_size": 8, "the code of losses.py": "01ab"}
    rendezvous.check_same([same, dict(same), dict(same)])
    other = {"--batch_size": 16, "the code of losses.py": "01ab", "the code of mine": "02cd"}
    message = (
        "the workers of the cluster differ (worker 1 is the chief): --batch_size is 8 on worker 1, 3 and 16 on worker "
        '2; the code of mine is missing on worker 1, 3 and "02cd" on worker 2; start all with the same'
    )
    with pytest.raises(UserError, match=re.escape(message)):
        rendezvous.check_same([same, other, same])
    with pytest.raises(UserError, match="4 is 4 on worker 1 and 5 on worker 2; and 3 more; start all"):
        rendezvous.check_same([{str(i): i for i in range(8)}, {str(i): i + 1 for i in range(8)}])
