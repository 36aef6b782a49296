"""The devices that a model runs on: those of this machine, or of several machines that train one model together."""

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
    """All devices that work on one model. With several machines, each runs one process, called a worker.

    Attributes:
        strategy: has one replica per device of all workers, the chief's first.
        num_workers: number of processes.
        worker: number of this process. Worker 0 is the chief; only the chief logs steps, evaluates and writes files.
    """

    strategy: tf.distribute.Strategy
    num_workers: int = 1
    worker: int = 0

    @property
    def is_chief(self) -> bool:
        """Whether this process is the chief."""
        return self.worker == 0

    @property
    def num_replicas(self) -> int:
        """The number of devices of all workers together."""
        return self.strategy.num_replicas_in_sync

    @property
    def replicas(self) -> range:
        """The numbers of this process's replicas among all replicas."""
        num_local = self.num_replicas // self.num_workers
        return range(self.worker * num_local, (self.worker + 1) * num_local)

    def distribute(self, batches: tf.data.Dataset) -> tf.data.Dataset:
        """Prefetches batches to the devices of this process.

        Args:
            batches: replica batches, one for each of `replicas` in turn, as `readers.make_training_dataset` returns
                them: ids, images, labels and weights.

        Returns:
            Images, labels and weights, where a weight is the replica batch's fraction of the global batch. Images are
            uint8 on GPUs, which scale them after the transfer, and float32 in [-1, 1] on CPUs.
        """
        gpus = tf.config.list_logical_devices("GPU")
        if not gpus:
            batches = readers.scale_batches(batches)
        batches = batches.map(lambda unused_ids, *columns: columns)  # GPUs do not take strings.
        if self.num_replicas == 1:
            return batches.apply(tf.data.experimental.prefetch_to_device(gpus[0].name)) if gpus else batches
        # Marked infinite; otherwise TensorFlow synchronizes all devices at each step to ask whether a batch is left.
        # The training loop knows the number of batches.
        infinite = batches.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))
        return self.strategy.distribute_datasets_from_function(lambda unused_context: infinite)

    def on_all_devices(self, function: Callable) -> Callable[..., list]:
        """Returns a function that splits a batch over this process's devices and gathers the outputs in a list.

        Args:
            function: takes tensors of shape [batch, ...] and returns a tensor or a structure of tensors.

        Returns:
            A function that takes the same tensors. It returns the list of `function`'s outputs for the replica batches,
            in the order of their rows. Replicas without a row are left out.
        """
        if len(self.replicas) == 1:
            return lambda *columns: [function(*columns)]

        def on_replica(*columns: tf.Tensor) -> object:
            return function(*columns)  # `strategy.run` cannot pass per-replica values to a tf.function directly.

        run = tf.function(lambda *columns: self.strategy.run(on_replica, args=columns), reduce_retracing=True)

        def run_and_gather(*columns: tf.Tensor) -> list:
            batch_size, num_replicas = len(columns[0]), len(self.replicas)
            starts = [batch_size * i // num_replicas for i in range(num_replicas + 1)]

            def replica_rows(column: tf.Tensor, context: tf.distribute.ReplicaContext) -> tf.Tensor:
                i = int(context.replica_id_in_sync_group) - self.replicas.start
                return column[starts[i] : max(starts[i + 1], starts[i] + 1)]  # At least one row, so that all can run.

            distribute = self.strategy.experimental_distribute_values_from_function
            outputs = run(*(distribute(functools.partial(replica_rows, column)) for column in columns))
            by_replica = zip(*map(self.strategy.experimental_local_results, tf.nest.flatten(outputs)), strict=True)
            gathered = [tf.nest.pack_sequence_as(outputs, list(flat)) for flat in by_replica]
            return [output for i, output in enumerate(gathered) if starts[i + 1] > starts[i]]

        return run_and_gather

    def any_worker(self, *conditions: bool) -> list[bool]:
        """Returns for each condition whether it holds on any worker.

        All workers must call this at the same point, with as many conditions. They wait for each other.

        Raises:
            UserError: if a worker was lost.
        """
        if self.num_workers == 1:
            return list(conditions)
        return (self._sum(tf.constant(conditions, tf.float32)).numpy() > 0).tolist()

    def sync(self) -> None:
        """Waits until all workers have called this.

        Raises:
            UserError: if a worker was lost.
        """
        self.any_worker(False)

    def broadcast_from_chief(self, number: int) -> int:
        """Returns the chief's number on every worker. All workers must call this at the same point.

        Args:
            number: the number to broadcast; only that of the chief counts.

        Raises:
            UserError: if a worker was lost.
        """
        if self.num_workers == 1:
            return number
        return int(self._sum(tf.constant(number if self.is_chief else 0, tf.int64))) // len(self.replicas)

    def _sum(self, value: tf.Tensor) -> tf.Tensor:
        """Returns the sum of a value over the replicas of all workers."""
        with self.explain_lost_workers():
            return self.strategy.experimental_local_results(self._sum_in_graph(value))[0]

    @functools.cached_property
    def _sum_in_graph(self) -> Callable[[tf.Tensor], tf.Tensor]:
        def on_replica(value: tf.Tensor) -> tf.Tensor:
            local = tf.identity(value)  # On the replica's device.
            return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, local)

        return tf.function(lambda value: self.strategy.run(on_replica, args=(value,)))

    @contextlib.contextmanager
    def explain_lost_workers(self) -> Iterator[None]:
        """Turns TensorFlow's error about a lost worker, raised inside the block, into one line for the user.

        Put it around everything that workers do together. Blocks that explain other errors, such as
        `files.explain_write_errors`, belong outside of it; otherwise they take the error for one of theirs. The methods
        of this class already contain the block, and nested blocks are harmless.

        Raises:
            UserError: if another worker was lost.
        """
        try:
            yield
        except (tf.errors.OpError, UserError) as error:  # A UserError if it passed through a user's code.
            signs = ("Collective ops is aborted", "coordination service", "CollectiveReduce", "CollectiveBcast")
            if self.num_workers == 1 or not any(sign in str(error) for sign in signs):
                raise
            raise UserError(
                f"another worker of the cluster was lost (this is {self}); training ended on all workers; see the last "
                "log lines of the lost one, then start all again: they resume from the last checkpoint"
            ) from error

    def __str__(self) -> str:
        return f"worker {self.worker + 1} of {self.num_workers}{', the chief' if self.is_chief else ''}"


def local_devices() -> Cluster:
    """Returns the devices of this machine: all its GPUs, or the CPU if it has no GPU.

    To try several devices without GPUs, divide the CPU with `tf.config.set_logical_device_configuration`.
    """
    devices = [device.name for device in tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")]
    return Cluster(tf.distribute.MirroredStrategy(devices) if len(devices) > 1 else tf.distribute.get_strategy())


def join_cluster() -> Cluster:
    """Returns the devices to train on: those of all workers that the variable TF_CONFIG names, or of this machine.

    Call it before TensorFlow computes anything: a process can join a cluster only at its start.

    Raises:
        UserError: if TF_CONFIG is invalid or has kinds of tasks that the kit does not support.
    """
    cluster = read_tf_config(os.environ.get("TF_CONFIG", ""))
    if cluster is None:
        os.environ.pop("TF_CONFIG", None)
        joined = local_devices()
    else:
        config, num_workers, worker = cluster
        os.environ["TF_CONFIG"] = json.dumps(config)  # With "chief" for "master", which TensorFlow does not know.
        logging.info("Worker %d of %d: waiting for the others.", worker + 1, num_workers)
        on_sigterm = signal.getsignal(signal.SIGTERM)
        try:
            joined = Cluster(tf.distribute.MultiWorkerMirroredStrategy(), num_workers, worker)
        except tf.errors.OpError as error:
            raise UserError(
                f"TF_CONFIG={os.environ['TF_CONFIG']}: cannot join the cluster: {error.message}; check that every "
                "worker runs and can be reached at its address"
            ) from error
        signal.signal(signal.SIGTERM, on_sigterm)  # TensorFlow has installed a handler of its own.
        logging.info("Training on %d devices. This is %s.", joined.num_replicas, joined)
    gpus = [gpu.name for gpu in tf.config.list_logical_devices("GPU")]
    logging.info(*(("Using the following GPUs to train: %s", gpus) if gpus else ("No GPUs found. Training on CPU.",)))
    return joined


def read_tf_config(tf_config: str) -> tuple[dict, int, int] | None:
    """Parses the environment variable TF_CONFIG, which Vertex AI and other services set.

    https://www.tensorflow.org/guide/distributed_training#setting_up_the_tf_config_environment_variable

    Args:
        tf_config: the variable's text; "" if it is not set.

    Returns:
        (config, num_workers, worker): the parsed variable with "chief" for "master", the number of workers, and the
        number of this worker. None if there is only one worker.

    Raises:
        UserError: if the variable is invalid or has kinds of tasks that the kit does not support.
    """

    def invalid(reason: str) -> UserError:
        return UserError(f"TF_CONFIG={tf_config}: {reason}")

    try:
        config = json.loads(tf_config or "{}")
        cluster = {"chief" if job == "master" else job: list(tasks) for job, tasks in config.get("cluster", {}).items()}
        task = config.get("task", {})
        job, index = str(task.get("type", "worker")), int(task.get("index", 0))
    except (ValueError, TypeError, AttributeError) as error:
        raise invalid(
            'is not JSON like {"cluster": {"chief": ["host:port"], "worker": ["host:port"]}, "task": {"type": '
            '"worker", "index": 0}}; fix it, or unset it to train on this machine alone'
        ) from error
    job = "chief" if job == "master" else job
    if "ps" in (*cluster, job):
        raise invalid(
            'has parameter servers ("ps"), which this kit does not support: each worker holds the complete model; take '
            'them out, and give "chief" and "worker" only'
        )
    if job == "evaluator" or "evaluator" in cluster:
        raise invalid(
            'has an "evaluator", which this kit does not support; take it out, and run eval.py as a job of its own, or '
            "pass --eval_data_pattern to train.py"
        )
    unknown = set(cluster) - {"chief", "worker"}
    if unknown:
        raise invalid(f'has tasks of the kind "{min(unknown)}"; give "chief" and "worker" only')
    tasks = [("chief", i) for i in range(len(cluster.get("chief", ())))]
    tasks += [("worker", i) for i in range(len(cluster.get("worker", ())))]
    if len(tasks) <= 1:
        return None
    if len(cluster.get("chief", ())) > 1:
        raise invalid("has more than one chief; give one")
    if (job, index) not in tasks:
        raise invalid(f'its task, {job} {index}, is not in its cluster; set "task" to one of the cluster')
    return (
        {**config, "cluster": cluster, "task": {**task, "type": job, "index": index}},
        len(tasks),
        tasks.index((job, index)),
    )
