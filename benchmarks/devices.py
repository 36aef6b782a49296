"""Examples per second of training on 1, 2 and 4 logical CPUs of one process, and by 1 and 2 workers on loopback.

python benchmarks/devices.py --shards='shards/train-*'
"""

import argparse
import json
import os
import re
import socket
import statistics
import subprocess
import tempfile
import textwrap

from common import PYTHON, alternate, print_table, say_machine

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--shards", required=True)
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--batch_size", type=int, default=128, help="examples a step, over all devices")
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--only", default="", help="a regular expression: what to measure against 1 device")
arguments = parser.parse_args()

FLAGS = [f"--train_data_pattern={arguments.shards}", "--image_size=32", "--model=SmallConvNet"]
FLAGS += [f"--num_epochs={arguments.epochs}", '--model_params={"width": 16}']

# Runs train.py with a convolutional model in a process whose CPU is divided into several devices.
CODE = textwrap.dedent("""
    import runpy
    import sys

    import tensorflow as tf

    sys.path.insert(0, sys.argv.pop(1))
    from common import add_small_conv_net

    add_small_conv_net()
    num_devices = int(sys.argv.pop(1))
    if num_devices > 1:
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * num_devices)
    runpy.run_module("cats_vs_dogs.train", run_name="__main__", alter_sys=True)
""")


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def examples_per_second(num_devices: int, num_workers: int) -> float:
    """Returns the median speed in a run's log lines, without the first of them."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(num_workers)]
    batch_size = arguments.batch_size // (num_devices * num_workers)
    with tempfile.TemporaryDirectory() as folder:
        script = os.path.join(folder, "script.py")
        with open(script, "w", encoding="utf-8") as file:
            file.write(CODE)
        processes = []
        for index in range(num_workers):
            config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            processes.append(
                subprocess.Popen(
                    [*PYTHON, script, os.path.dirname(os.path.abspath(__file__)), str(num_devices), *FLAGS]
                    + [f"--batch_size={batch_size}", f"--train_dir={folder}/model"],
                    env={**os.environ, "TF_CONFIG": json.dumps(config) if num_workers > 1 else ""},
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        said = [process.communicate()[1] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit("\n".join(said))
    return statistics.median(float(speed) for speed in re.findall(r"Examples/sec: ([\d.]+)", said[0])[1:])


def main() -> None:
    say_machine()
    others = {"2 devices": (2, 1), "4 devices": (4, 1), "2 workers of 1 device": (1, 2)}
    others = {name: counts for name, counts in others.items() if re.search(arguments.only, name)}
    settings = {"1 device": (1, 1), **others}
    median = alternate(
        {name: lambda counts=counts: examples_per_second(*counts) for name, counts in settings.items()},
        arguments.rounds,
    )
    rows = [(name, f"{speed:,.0f}", f"{speed / median['1 device']:.2f}") for name, speed in median.items()]
    print_table(("what", "examples/s", "against 1 device"), rows)


if __name__ == "__main__":
    main()
