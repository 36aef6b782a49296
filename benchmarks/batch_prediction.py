"""What batch_predict.py costs for a record beyond the model, and how fast one process and workers of Dask predict.

python benchmarks/batch_prediction.py --shards='shards/train-*' --train_dir=/tmp/cvd_model \\
    --model_dir=/tmp/cvd_model/export/step_45
"""

import argparse
import contextlib
import glob
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import psutil  # Comes with Dask.
import tensorflow as tf
from common import PYTHON, alternate, copy_shards, print_table, say_machine

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--shards", required=True)
parser.add_argument("--train_dir", required=True, help="the model, for inference.py")
parser.add_argument("--model_dir", required=True, help="an export of the model, for batch_predict.py")
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--copies", type=int, default=8, help="how many times the shards are read in the second part")
parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="numbers of Dask workers to compare")
arguments = parser.parse_args()

from cats_vs_dogs import batch_pipeline, batch_predict, tfrecords

BATCH_SIZE = 128
REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def main() -> None:
    say_machine()
    shards = sorted(glob.glob(arguments.shards))
    num_records = sum(tfrecords.scan(path).count for path in shards)
    costs_of_a_record(shards, num_records)
    print()
    speeds(shards, num_records)


def costs_of_a_record(shards: list[str], num_records: int) -> None:
    """Prints the processor time, over all threads, of the model alone and of each part that the script adds."""
    records = [record for path in shards for _, record in tfrecords.walk(path, with_bytes=True)]
    model = batch_pipeline.load_model(arguments.model_dir)
    signature = model.signatures[batch_pipeline.SIGNATURE]
    options = batch_predict.parse_beam_flags([], [])

    def microseconds(function) -> float:
        start = time.process_time()
        function()
        return (time.process_time() - start) / num_records * 1e6

    def model_alone() -> None:
        for start in range(0, num_records, BATCH_SIZE):
            signature(example_bytes=tf.constant(records[start : start + BATCH_SIZE]))

    def predict() -> None:
        with tempfile.TemporaryDirectory() as folder:
            predict_part = batch_pipeline.PartPredictor(arguments.model_dir, BATCH_SIZE, folder)
            predict_part._model.acquire(lambda: model)  # Loaded already.
            for number, path in enumerate(shards):
                predict_part(batch_pipeline.Part(number, path))

    def pipeline(files: list[str]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            batch_pipeline.run(arguments.model_dir, files, folder, BATCH_SIZE, options)

    model_alone()  # The first call is slower.
    median = alternate(
        {
            "the model, records in memory": lambda: microseconds(model_alone),
            "and reading, JSON, files": lambda: microseconds(predict),
            # Twice as many minus once, so that the start is left out.
            "and Beam, shards divided": lambda: (
                microseconds(lambda: pipeline([*shards, *shards])) - microseconds(lambda: pipeline(shards))
            ),
        },
        arguments.rounds,
    )
    base = median["the model, records in memory"]
    rows = [(name, f"{value:.0f}", f"{value - base:.0f}", f"{value / base:.2f}") for name, value in median.items()]
    print_table(("what", "CPU us a record", "beyond the model", "ratio"), rows)


def speeds(shards: list[str], num_records: int) -> None:
    """Prints records a second of complete processes: many shards minus few, so that the start is left out."""
    more = (arguments.copies - 1) * num_records
    figures = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        copy_shards(shards, f"{folder}/shards", arguments.copies)
        batch = ["batch_predict", f"--model_dir={arguments.model_dir}", f"--output_path={folder}/results"]
        commands = {
            "inference.py, all cores": (
                ["inference", f"--train_dir={arguments.train_dir}", f"--output_file={folder}/results.csv"],
                [],
            ),
            "batch_predict.py, all cores": (batch, []),
        }
        for number in arguments.workers:
            address, processes = stack.enter_context(dask_cluster(number, f"{folder}/{number}-workers.json"))
            name = f"batch_predict.py, {number} Dask workers of a core"
            commands[name] = ([*batch, "--runner=DaskRunner", f"--dask_client_address={address}"], processes)

        def seconds(name: str, pattern: str) -> tuple[float, float]:
            """Returns the wall time and the processor time, the latter with that of a cluster."""
            (script, *flags), cluster = commands[name]
            command = [*PYTHON, os.path.join(REPOSITORY, "cats_vs_dogs", f"{script}.py"), *flags]
            command += [f"--batch_size={BATCH_SIZE}", f"--input_data_pattern={folder}/shards/{pattern}"]
            start, used = time.perf_counter(), processor_seconds(cluster)
            process = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            if process.returncode:
                sys.exit(process.stderr)
            return time.perf_counter() - start, processor_seconds(cluster) - used

        def speed(name: str) -> float:
            few, few_cpu = seconds(name, "0-*")
            many, many_cpu = seconds(name, "*-*")
            figures.setdefault(name, []).append((few, (many_cpu - few_cpu) / more * 1e6))
            return more / max(many - few, 1e-3)  # On a tiny input and a busy machine, the difference may be negative.

        median = alternate({name: lambda name=name: speed(name) for name in commands}, arguments.rounds)
    base = next(iter(median.values()))
    rows = []
    for name, value in median.items():
        few, cpu = (sorted(column)[len(column) // 2] for column in zip(*figures[name], strict=True))
        rows.append((name, f"{few:.0f}", f"{max(cpu, 0):.0f}", f"{value:,.0f}", f"{value / base:.2f}"))
    print_table(("what", "seconds for the shards once", "CPU us a record", "records/s", "against inference.py"), rows)


@contextlib.contextmanager
def dask_cluster(num_workers: int, scheduler_file: str) -> Iterator[tuple[str, list[psutil.Process]]]:
    """Starts a scheduler and workers on this machine, and yields the scheduler's address and all processes.

    Each worker has one thread of TensorFlow for kernels; otherwise a single worker uses all cores.
    """
    import distributed

    environment = {**os.environ, "PYTHONPATH": REPOSITORY, "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
    with contextlib.ExitStack() as stack:

        def start(kind: str, *flags: str) -> psutil.Process:
            command = [sys.executable, "-m", "dask", kind, "--scheduler-file", scheduler_file, "--host=127.0.0.1"]
            settings = {"env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            process = psutil.Popen([*command, *flags], **settings)
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        processes = [start("scheduler", "--port=0", "--dashboard-address=127.0.0.1:0")]
        place = f"--local-directory={os.path.dirname(scheduler_file)}"
        flags = ["--no-dashboard", "--no-nanny", "--nthreads=1", "--memory-limit=0", place]
        processes += [start("worker", *flags) for _ in range(num_workers)]
        while not os.path.exists(scheduler_file):
            time.sleep(0.1)
        with distributed.Client(scheduler_file=scheduler_file, timeout=300, set_as_default=False) as client:
            client.wait_for_workers(num_workers, timeout=300)
            address = client.scheduler.address
        yield address, processes


def processor_seconds(running: list[psutil.Process]) -> float:
    """Returns the processor time of all child processes that have ended, and of some that run."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    times = [process.cpu_times() for process in running]
    return ended.ru_utime + ended.ru_stime + sum(time.user + time.system for time in times)


if __name__ == "__main__":
    main()
