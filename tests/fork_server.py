"""Runs Python scripts in forks of a process that has imported TensorFlow, which saves over two seconds for each.

    server = ForkServer()
    subprocess.run([*server.python, "script.py", "--flag"])  # Like [sys.executable, "script.py", "--flag"].

The command starts a small process. It sends its arguments, folder, environment and open files to the server, passes
SIGINT and SIGTERM on to the fork, and ends as the fork ends; SIGSTOP would stop the small process alone. The fork
imports the kit's modules itself, runs the script in the main thread, and exits as an interpreter does. Unlike
interpreters, all forks have the same hash seed.
"""

import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading

PATH = os.path.abspath(__file__)


class ForkServer:
    """A server that ends with this process.

    Attributes:
        python: what to write instead of `[sys.executable]`.
    """

    def __init__(self):
        folder = tempfile.mkdtemp()
        address = os.path.join(folder, "socket")
        with socket.socket(socket.AF_UNIX) as listener, open(os.path.join(folder, "log"), "wb") as log:
            # From here on clients can connect; they wait until the server has imported TensorFlow.
            listener.bind(address)
            listener.listen(100)
            # The server ends when this process closes the pipe, if only by ending.
            reader, self._writer = os.pipe()
            files = (listener.fileno(), reader)
            command = [sys.executable, PATH, "serve", *map(str, files)]
            subprocess.Popen(command, cwd="/", pass_fds=files, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            os.close(reader)
        # Isolated and without site-packages, it starts in a few hundredths of a second.
        self.python = [sys.executable, "-I", "-S", PATH, address]


def import_once() -> None:
    """Does once what takes each script time: imports, and matplotlib's look at its fonts and figures.

    Then it forgets the kit's modules again, since a script may be one of another clone.
    """
    import numpy as np  # Late, since the small processes do without it.

    sys.path[0] = os.path.dirname(os.path.dirname(PATH))
    of_the_report = ("jinja2", "matplotlib.backends.backend_svg", "tensorboard.plugins.hparams.summary_v2")
    for name in ("cats_vs_dogs.inference", "cats_vs_dogs.train", *of_the_report):
        importlib.import_module(name)
    figures, report_figures = (sys.modules[f"cats_vs_dogs.{name}"] for name in ("figures", "report_figures"))
    points = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    figures.draw_roc(points, area=1.0)
    report_figures.draw_roc(points)
    for name in [name for name in sys.modules if name.split(".")[0] == "cats_vs_dogs"]:
        del sys.modules[name]
    gc.freeze()  # Otherwise the collector writes to all objects, and forks share no memory.


def serve(listener: socket.socket, end: int) -> list[str]:
    """Forks for each client, until the pipe `end` is closed. Returns in forks only: the arguments of the client."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # No fork is waited for here.
    while True:
        ready, _, _ = select.select([listener, end], [], [])
        if end in ready:
            os._exit(0)
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            os.close(end)
            return fork_and_wait(connection)
        connection.close()


def fork_and_wait(connection: socket.socket) -> list[str]:
    """Returns in a fork that is like the client: its arguments. This process tells the client how the fork ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    message, files, _, _ = socket.recv_fds(connection, 8, 3)
    with connection.makefile("rb") as stream:
        request = json.loads(stream.read(*struct.unpack("Q", message)))
    script = os.fork()
    if script == 0:
        connection.close()
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        return request["arguments"]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for file in files:
        os.close(file)
    connection.sendall(struct.pack("i", script))
    # A client that is killed takes the script with it.
    threading.Thread(target=lambda: connection.recv(1) or os.kill(script, signal.SIGKILL), daemon=True).start()
    _, status = os.waitpid(script, 0)
    connection.sendall(struct.pack("i", os.waitstatus_to_exitcode(status)))
    os._exit(0)


def run_in_fork(address: str, arguments: list[str]) -> None:
    """Has the server run a script, and ends this process as the script ends."""
    request = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
    message = json.dumps(request).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        socket.send_fds(connection, [struct.pack("Q", len(message))], [0, 1, 2])
        connection.sendall(message)
        script = receive_number(connection)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: os.kill(script, number))
        code = receive_number(connection)
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def receive_number(connection: socket.socket) -> int:
    """Returns the next number that the server sends."""
    message = connection.recv(4)
    if not message:
        sys.exit(f"The fork server ended; {os.path.dirname(sys.argv[1])}/log may say why.")
    return struct.unpack("i", message)[0]


if __name__ == "__main__":
    if sys.argv[1] != "serve":
        run_in_fork(sys.argv[1], sys.argv[2:])
    import_once()
    sys.argv = serve(socket.socket(fileno=int(sys.argv[2])), int(sys.argv[3]))
    sys.orig_argv[:] = [sys.executable, *sys.argv]
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    # As in an interpreter, code of the script knows its full path; the kit shows log lines of its own folder only.
    runpy.run_path(os.path.abspath(sys.argv[0]), run_name="__main__")
