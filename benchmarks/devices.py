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
import sys
import tempfile
import textwrap

from common import alternate, print_table, say_machine

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--shards", required=True)
parser.add_argument("--rounds", type=int, default=3)
arguments = parser.parse_args()

GLOBAL_BATCH = 128
FLAGS = [f"--train_data_pattern={arguments.shards}", "--image_size=32", "--num_epochs=3", "--model=SmallConvNet"]
FLAGS += ['--model_params={"width": 16}']

# train.py in a process whose CPU is divided, with a model that has something to calculate.
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
    """Returns the median of the log lines of a run, which count from the second step on."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(num_workers)]
    batch_size = GLOBAL_BATCH // (num_devices * num_workers)
    with tempfile.TemporaryDirectory() as folder:
        processes = []
        for index in range(num_workers):
            config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", CODE, os.path.dirname(os.path.abspath(__file__)), str(num_devices), *FLAGS]
                    + [f"--batch_size={batch_size}", f"--train_dir={folder}"],
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
    settings = {"1 device": (1, 1), "2 devices": (2, 1), "4 devices": (4, 1), "2 workers of 1 device": (1, 2)}
    median = alternate(
        {name: lambda counts=counts: examples_per_second(*counts) for name, counts in settings.items()},
        arguments.rounds,
    )
    rows = [(name, f"{speed:,.0f}", f"{speed / median['1 device']:.2f}") for name, speed in median.items()]
    print_table(("what", "examples/s", "against 1 device"), rows)


if __name__ == "__main__":
    main()
