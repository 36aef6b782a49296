"""What batch_predict.py costs for a record beyond the model, and how it scales from one worker process to two.

python benchmarks/batch_prediction.py --shards='shards/train-*' --model_dir=/tmp/cvd_model/export/step_45
"""

import argparse
import glob
import itertools
import os
import resource
import subprocess
import sys
import tempfile
import time

import tensorflow as tf
from common import alternate, print_table, say_machine

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--shards", required=True)
parser.add_argument("--model_dir", required=True)
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--copies", type=int, default=8, help="how many times the shards are read in the second part")
parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="numbers of worker processes to compare")
arguments = parser.parse_args()

from cats_vs_dogs import batch_pipeline, batch_predict, tfrecords

BATCH_SIZE = 128
SCRIPT = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "cats_vs_dogs", "batch_predict.py")


def main() -> None:
    say_machine()
    shards = sorted(glob.glob(arguments.shards))
    num_records = sum(tfrecords.scan(path).count for path in shards)
    costs_of_a_record(shards, num_records)
    print()
    scaling(shards, num_records)


def costs_of_a_record(shards: list[str], num_records: int) -> None:
    """Prints the processor time, over all threads, of the model alone and of each part that the script adds."""
    records = [record for path in shards for _, record in tfrecords.walk(path, with_bytes=True)]
    handler = batch_pipeline.SavedModelHandler(arguments.model_dir, BATCH_SIZE)
    model = handler.load_model()
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
        for number, path in enumerate(shards):
            read = batch_pipeline.read(batch_pipeline.Part(number, path))
            while batch := list(itertools.islice(read, BATCH_SIZE)):
                handler.run_inference(batch, model)

    def pipeline(files: list[str]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            batch_pipeline.run(arguments.model_dir, files, folder, BATCH_SIZE, options)

    model_alone()  # The first call is slower.
    median = alternate(
        {
            "the model, records in memory": lambda: microseconds(model_alone),
            "and reading, JSON": lambda: microseconds(predict),
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


def scaling(shards: list[str], num_records: int) -> None:
    """Prints records a second of complete processes: many shards minus few, so that the start is left out."""
    with tempfile.TemporaryDirectory() as folder:
        for copy in range(arguments.copies):
            for number, path in enumerate(shards):
                os.symlink(os.path.abspath(path), os.path.join(folder, f"{copy}-{number}"))

        def seconds(pattern: str, num_workers: int) -> tuple[float, float]:
            command = [sys.executable, SCRIPT, f"--model_dir={arguments.model_dir}", f"--batch_size={BATCH_SIZE}"]
            command += [f"--input_data_pattern={folder}/{pattern}", f"--output_path={folder}/results"]
            command += ["--direct_running_mode=multi_processing", f"--direct_num_workers={num_workers}"]
            # One core for each worker; otherwise a single worker uses all of them.
            environment = {**os.environ, "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
            start, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(command, check=True, capture_output=True, env=environment)
            now = resource.getrusage(resource.RUSAGE_CHILDREN)
            return time.perf_counter() - start, now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime

        more = (arguments.copies - 1) * num_records
        figures = {}

        def speed(num_workers: int) -> float:
            few, few_cpu = seconds("0-*", num_workers)
            many, many_cpu = seconds("*-*", num_workers)
            figures.setdefault(num_workers, []).append((few, (many_cpu - few_cpu) / more * 1e6))
            return more / (many - few)

        median = alternate(
            {number: lambda number=number: speed(number) for number in arguments.workers}, arguments.rounds
        )
    rows = []
    for workers, value in median.items():
        few, cpu = (sorted(column)[len(column) // 2] for column in zip(*figures[workers], strict=True))
        rows.append(
            (workers, f"{few:.0f}", f"{cpu:.0f}", f"{value:,.0f}", f"{value / median[arguments.workers[0]]:.2f}")
        )
    print_table(("workers", "seconds for the shards once", "CPU us a record", "records/s", "against the first"), rows)


if __name__ == "__main__":
    main()
