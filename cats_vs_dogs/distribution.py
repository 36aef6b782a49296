"""On which devices a model trains and predicts: of this machine, or of several that train one model together."""

import contextlib
import dataclasses
import functools
import json
import os
import signal
from collections.abc import Callable, Iterator

import tensorflow as tf
from absl import logging

from cats_vs_dogs import readers
from cats_vs_dogs.utils import UserError


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The devices that work on one model. On several machines a process, a worker, runs on each.

    Attributes:
        strategy: its replicas are the devices of all workers, those of the chief first.
        num_workers: how many processes there are.
        worker: the number of this one; 0 is the chief, which alone logs steps, evaluates and writes.
    """

    strategy: tf.distribute.Strategy
    num_workers: int = 1
    worker: int = 0

    @property
    def is_chief(self) -> bool:
        """Whether this is the process that writes."""
        return self.worker == 0

    @property
    def num_replicas(self) -> int:
        """How many devices there are, those of all workers together."""
        return self.strategy.num_replicas_in_sync

    @property
    def replicas(self) -> range:
        """The numbers of this process's devices among all."""
        num_here = self.num_replicas // self.num_workers
        return range(self.worker * num_here, (self.worker + 1) * num_here)

    def distribute(self, batches: tf.data.Dataset) -> tf.data.Dataset:
        """Brings batches to the devices of this process before they are asked for.

        Args:
            batches: for one of `replicas` after the other, as `readers.make_training_dataset` gives them.

        Returns:
            Images, labels and shares: images uint8 on GPUs, where bytes are brought and floats are made; float32 in
            [-1, 1] on CPUs.
        """
        gpus = tf.config.list_logical_devices("GPU")
        if not gpus:
            batches = readers.scale_batches(batches)
        batches = batches.map(lambda unused_ids, *columns: columns)  # Strings have no place on a GPU.
        if self.num_replicas == 1:
            return batches.apply(tf.data.experimental.prefetch_to_device(gpus[0].name)) if gpus else batches
        # Said to be endless, since the devices would otherwise agree at each step whether there is one more: who takes
        # the batches knows their number.
        endless = batches.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))
        return self.strategy.distribute_datasets_from_function(lambda unused_context: endless)

    def on_all_devices(self, function: Callable) -> Callable[..., list]:
        """Returns a function that splits a batch over the devices of this process.

        Args:
            function: of some tensors, each [batch, ...]; its outputs are tensors.

        Returns:
            A function of the same tensors, which returns a list of outputs: of the first part of the batch, the
            second, and so on. Parts without a row are left out.
        """
        if len(self.replicas) == 1:
            return lambda *columns: [function(*columns)]

        def on_replica(*columns: tf.Tensor) -> object:
            return function(*columns)  # Of its own: a tf.function takes no per-replica values from `strategy.run`.

        run = tf.function(lambda *columns: self.strategy.run(on_replica, args=columns), reduce_retracing=True)

        def split_and_run(*columns: tf.Tensor) -> list:
            size, num_parts = len(columns[0]), len(self.replicas)
            starts = [size * i // num_parts for i in range(num_parts + 1)]

            def part(column: tf.Tensor, context: tf.distribute.ReplicaContext) -> tf.Tensor:
                i = int(context.replica_id_in_sync_group) - self.replicas.start
                return column[starts[i] : max(starts[i + 1], starts[i] + 1)]

            distribute = self.strategy.experimental_distribute_values_from_function
            outputs = run(*(distribute(functools.partial(part, column)) for column in columns))
            by_replica = zip(*map(self.strategy.experimental_local_results, tf.nest.flatten(outputs)), strict=True)
            packed = [tf.nest.pack_sequence_as(outputs, list(flat)) for flat in by_replica]
            return [output for i, output in enumerate(packed) if starts[i + 1] > starts[i]]

        return split_and_run

    def any_worker(self, *conditions: bool) -> list[bool]:
        """Returns which conditions hold on any worker. All workers must ask at the same point, and wait for each other.

        Raises:
            UserError: if a worker was lost.
        """
        if self.num_workers == 1:
            return list(conditions)
        return (self._sum(tf.constant(conditions, tf.float32)).numpy() > 0).tolist()

    def wait(self) -> None:
        """Waits until all workers are at this point.

        Raises:
            UserError: if a worker was lost.
        """
        self.any_worker(False)

    def of_chief(self, number: int) -> int:
        """Returns the number that the chief gives. All workers must ask at the same point.

        Raises:
            UserError: if a worker was lost.
        """
        if self.num_workers == 1:
            return number
        return int(self._sum(tf.constant(number if self.is_chief else 0, tf.int64))) // len(self.replicas)

    def _sum(self, value: tf.Tensor) -> tf.Tensor:
        """Sums over the replicas of all workers."""
        with self.named_losses():
            return self.strategy.experimental_local_results(self._sum_in_graph(value))[0]

    @functools.cached_property
    def _sum_in_graph(self) -> Callable[[tf.Tensor], tf.Tensor]:
        def on_replica(value: tf.Tensor) -> tf.Tensor:
            here = tf.identity(value)  # On the device of the replica.
            return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, here)

        return tf.function(lambda value: self.strategy.run(on_replica, args=(value,)))

    @contextlib.contextmanager
    def named_losses(self) -> Iterator[None]:
        """Turns what TensorFlow raises inside the block when another worker is gone into one line.

        Raises:
            UserError: if a worker was lost.
        """
        try:
            yield
        except (tf.errors.OpError, UserError) as error:  # A UserError if it came within a user's code.
            signs = ("Collective ops is aborted", "coordination service", "CollectiveReduce", "CollectiveBcast")
            if self.num_workers == 1 or not any(sign in str(error) for sign in signs):
                raise
            raise UserError(
                f"another worker of the cluster was lost (this is {self}); see what it said last; training ended "
                "on all of them, and goes on from the last checkpoint when all are started again"
            ) from error

    def __str__(self) -> str:
        return f"worker {self.worker + 1} of {self.num_workers}{', the chief' if self.is_chief else ''}"


def local_devices() -> Cluster:
    """Returns the devices of this machine: all GPUs if there are several, else the one device.

    Several CPUs are several devices only where someone has divided the CPU with
    `tf.config.set_logical_device_configuration`, to try several devices without GPUs.
    """
    devices = [device.name for device in tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")]
    return Cluster(tf.distribute.MirroredStrategy(devices) if len(devices) > 1 else tf.distribute.get_strategy())


def join_cluster() -> Cluster:
    """Returns the devices to train on: of all workers if the variable TF_CONFIG names several, else of this machine.

    To be called before anything is calculated: TensorFlow can join a cluster only at the start of a process.

    Raises:
        UserError: if TF_CONFIG is not what it should be, or has tasks that this kit has no use for.
    """
    cluster = tasks_of(os.environ.get("TF_CONFIG", ""))
    if cluster is None:
        os.environ.pop("TF_CONFIG", None)
        joined = local_devices()
    else:
        config, num_workers, worker = cluster
        os.environ["TF_CONFIG"] = json.dumps(config)  # With "chief", where TensorFlow does not know "master".
        logging.info("Worker %d of %d: waiting for the others.", worker + 1, num_workers)
        on_sigterm = signal.getsignal(signal.SIGTERM)
        try:
            joined = Cluster(tf.distribute.MultiWorkerMirroredStrategy(), num_workers, worker)
        except tf.errors.OpError as error:
            raise UserError(f"TF_CONFIG={os.environ['TF_CONFIG']}: cannot join the cluster: {error.message}") from error
        signal.signal(signal.SIGTERM, on_sigterm)  # TensorFlow listens to it, too, and would keep it for itself.
        logging.info("Training on %d devices. This is %s.", joined.num_replicas, joined)
    gpus = [gpu.name for gpu in tf.config.list_logical_devices("GPU")]
    logging.info(*(("Using the following GPUs to train: %s", gpus) if gpus else ("No GPUs found. Training on CPU.",)))
    return joined


def tasks_of(tf_config: str) -> tuple[dict, int, int] | None:
    """Reads the variable TF_CONFIG, as Vertex AI and others set it.

    https://www.tensorflow.org/guide/distributed_training#setting_up_the_tf_config_environment_variable

    Args:
        tf_config: its text, "" if it is not set.

    Returns:
        TF_CONFIG with "chief" for "master", the number of workers, and the number of this one; None if it is alone.

    Raises:
        UserError: if it is not what it should be, or has tasks that this kit has no use for.
    """

    def refuse(reason: str) -> UserError:
        return UserError(f"TF_CONFIG={tf_config}: {reason}")

    try:
        config = json.loads(tf_config or "{}")
        cluster = {"chief" if job == "master" else job: list(tasks) for job, tasks in config.get("cluster", {}).items()}
        task = config.get("task", {})
        job, index = str(task.get("type", "worker")), int(task.get("index", 0))
    except (ValueError, TypeError, AttributeError) as error:
        raise refuse(
            'is not JSON like {"cluster": {"chief": ["host:port"], "worker": ["host:port"]}, "task": {"type": '
            '"worker", "index": 0}}; mend it, or unset it to train on this machine alone'
        ) from error
    job = "chief" if job == "master" else job
    if "ps" in (*cluster, job):
        raise refuse(
            'has parameter servers ("ps"), which this kit has no use for: all workers hold the whole model; take them '
            'out, and give "chief" and "worker" only'
        )
    if job == "evaluator" or "evaluator" in cluster:
        raise refuse(
            'has an "evaluator", which this kit has no use for; take it out, and run eval.py as a job of its own, or '
            "pass --eval_data_pattern to train.py"
        )
    foreign = set(cluster) - {"chief", "worker"}
    if foreign:
        raise refuse(f'has tasks of the kind "{min(foreign)}"; give "chief" and "worker" only')
    tasks = [("chief", i) for i in range(len(cluster.get("chief", ())))]
    tasks += [("worker", i) for i in range(len(cluster.get("worker", ())))]
    if len(tasks) <= 1:
        return None
    if len(cluster.get("chief", ())) > 1:
        raise refuse("has more than one chief; give one")
    if (job, index) not in tasks:
        raise refuse(f'its task, {job} {index}, is not in its cluster; name one that is there as "task"')
    return (
        {**config, "cluster": cluster, "task": {**task, "type": job, "index": index}},
        len(tasks),
        tasks.index((job, index)),
    )
