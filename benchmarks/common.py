"""What the benchmarks share: the machine, median of several runs, the table with the ratio last."""

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import cats_vs_dogs  # noqa: F401 - Sets what TensorFlow reads when it is imported.


def say_machine() -> None:
    """Prints what the figures were measured on."""
    import keras
    import tensorflow as tf

    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            name = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), name)
    print(
        f"{os.cpu_count()} cores, {name}; Python {platform.python_version()}, TensorFlow {tf.__version__}, "
        f"Keras {keras.__version__}\n"
    )


def add_small_conv_net() -> None:
    """Adds SmallConvNet to the models: three convolutions with batch norm, of 94,000 parameters."""
    import keras

    from cats_vs_dogs import cvd_models, models

    class SmallConvNet(models.BaseModel):
        def create_model(self, model_input, width=32):
            net = model_input
            for filters in (width, 2 * width, 4 * width):
                net = keras.layers.Conv2D(filters, 3, padding="same", use_bias=False)(net)
                net = keras.layers.MaxPooling2D()(keras.layers.ReLU()(keras.layers.BatchNormalization()(net)))
            net = keras.layers.GlobalAveragePooling2D()(net)
            return {"predictions": keras.layers.Dense(1, activation="sigmoid")(net)}

    cvd_models.SmallConvNet = SmallConvNet


def alternate(contestants: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Runs contestants in turn, so that a slow spell of the machine meets all of them, and returns the median of each.

    Args:
        contestants: functions that return a speed.
        rounds: how often each runs.
    """
    speeds = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            speeds[name].append(run())
    return {name: statistics.median(values) for name, values in speeds.items()}


def seconds_of(function: Callable[[], object]) -> float:
    """Returns how long a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints a Markdown table."""
    for row in (header, ["---"] * len(header), *rows):
        print("| " + " | ".join(map(str, row)) + " |")
