"""The devices that a model runs on: those of this machine, or of several machines that train one model together."""

import contextlib
import dataclasses
import functools
import json
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging
from tensorflow.python.eager import context  # tf.config cannot set the time after which a worker counts as lost.

from cats_vs_dogs import readers, rendezvous
from cats_vs_dogs.utils import UserError

_CHUNK = 4096  # Bytes that workers exchange at once.


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
            Images, [n, size, size, 3]; labels, int32 [n, 1]; and weights, float32 scalars: the replica batch's fraction
            of the global batch. Images are uint8 on GPUs, which scale them after the transfer, and float32 in [-1, 1]
            on CPUs.
        """
        gpus = tf.config.list_logical_devices("GPU")
        if not gpus:
            batches = readers.scale_batches(batches)
        without_ids = tf.autograph.experimental.do_not_convert(lambda unused_ids, *columns: columns)
        batches = batches.map(without_ids)  # GPUs do not take strings.
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
        return int(self.gather(str(number).encode())[0])

    def gather(self, data: bytes) -> list[bytes]:
        """Returns the data of each worker, on every worker. All workers must call this at the same point.

        Args:
            data: what this worker has, of any length.

        Raises:
            UserError: if a worker was lost.
        """
        if self.num_workers == 1:
            return [data]
        sizes = self._sum_rows(np.array([len(data)]))[:, 0]
        chunks = []
        for start in range(0, sizes.max(), _CHUNK):  # Of one shape, since each shape needs a graph of its own.
            chunk = np.frombuffer(data[start : start + _CHUNK], np.uint8)
            chunks.append(self._sum_rows(np.pad(chunk, (0, _CHUNK - len(chunk)))))
        rows = np.concatenate(chunks, axis=1) if chunks else np.zeros([self.num_workers, 0])
        return [row[:size].astype(np.uint8).tobytes() for row, size in zip(rows, sizes, strict=True)]

    def _sum_rows(self, row: np.ndarray) -> np.ndarray:
        """Returns the row of numbers of each worker: the sum of tables in which every worker fills in its own row."""
        rows = np.zeros([self.num_workers, len(row)], np.int64)
        rows[self.worker] = row
        return self._sum(tf.constant(rows)).numpy() // len(self.replicas)

    def check_same(self, about: dict[str, Any]) -> None:
        """Checks that all workers tell the same about themselves. All workers must call this at the same point.

        Args:
            about: what this worker tells, see `rendezvous.check_same`.

        Raises:
            UserError: if they do not; all workers get the same message. Or if a worker was lost.
        """
        told = [json.loads(text) for text in self.gather(json.dumps(about).encode())]
        try:
            rendezvous.check_same(told)
        except UserError:
            with contextlib.suppress(UserError):
                self.sync()  # All workers know the result before one ends. The others would take that one for lost.
            raise

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
                f"another worker of the cluster was lost (this is {self}): it ended, or it did not answer for longer "
                "than --worker_timeout, perhaps because it was paused; training ended on all workers; see the last log "
                "lines of the lost one, then start all again: they resume from the last checkpoint"
            ) from error

    def __str__(self) -> str:
        return f"worker {self.worker + 1} of {self.num_workers}{', the chief' if self.is_chief else ''}"


def local_devices() -> Cluster:
    """Returns the devices of this machine: all its GPUs, or the CPU if it has no GPU.

    To try several devices without GPUs, divide the CPU with `tf.config.set_logical_device_configuration`.
    """
    devices = [device.name for device in tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")]
    return Cluster(tf.distribute.MirroredStrategy(devices) if len(devices) > 1 else tf.distribute.get_strategy())


def join_cluster(about: Callable[[], dict[str, Any]], join_timeout: float, worker_timeout: float) -> Cluster:
    """Returns the devices to train on: those of all workers that the variable TF_CONFIG names, or of this machine.

    Call it before TensorFlow computes anything: a process can join a cluster only at its start.

    Args:
        about: returns what all workers must have in common, see `rendezvous.check_same`; called only if there are
            several workers.
        join_timeout: how many seconds to wait for the other workers.
        worker_timeout: how many seconds a worker may not answer before it counts as lost.

    Raises:
        UserError: if TF_CONFIG is invalid or has kinds of tasks that the kit does not support, if the workers differ,
            or if one is missing after `join_timeout`.
    """
    cluster = read_tf_config(os.environ.get("TF_CONFIG", ""))
    if cluster is None:
        os.environ.pop("TF_CONFIG", None)
        joined = local_devices()
    else:
        config, num_workers, worker = cluster
        jobs = {job: config["cluster"][job] for job in ("chief", "worker") if config["cluster"].get(job)}
        addresses = [str(address) for tasks in jobs.values() for address in tasks]
        others = [address for i, address in enumerate(addresses) if i != worker]
        logging.info("Worker %d of %d: waiting for %s.", worker + 1, num_workers, ", ".join(others))
        num_gpus = len(tf.config.list_physical_devices("GPU"))
        in_common = {"the cluster in TF_CONFIG": jobs, "the number of GPUs": num_gpus, **about()}
        rendezvous.check_same(rendezvous.meet(addresses, worker, in_common, join_timeout))
        os.environ["TF_CONFIG"] = json.dumps(config)  # With "chief" for "master", which TensorFlow does not know.
        joined = Cluster(_join(jobs, join_timeout, worker_timeout), num_workers, worker)
        logging.info("Training on %d devices. This is %s.", joined.num_replicas, joined)
    gpus = [gpu.name for gpu in tf.config.list_logical_devices("GPU")]
    logging.info(*(("Using the following GPUs to train: %s", gpus) if gpus else ("No GPUs found. Training on CPU.",)))
    return joined


def _join(jobs: dict[str, list[str]], join_timeout: float, worker_timeout: float) -> tf.distribute.Strategy:
    """Lets TensorFlow connect the workers; they are all there, so it takes a moment.

    Args:
        jobs: addresses by kind of worker.
        join_timeout: how many seconds to wait for the other workers.
        worker_timeout: how many seconds a worker may not answer before it counts as lost.

    Raises:
        UserError: if TensorFlow cannot connect them.
    """
    listed = tf.compat.v1.ConfigProto().experimental.coordination_config.coordinated_job_list
    for job, tasks in jobs.items():
        listed.add(name=job, num_tasks=len(tasks))
    # The strategy would do the same, with 10 seconds for `worker_timeout` and an hour for `join_timeout`.
    context.context().configure_coordination_service(
        service_type="standalone",
        service_leader=f"/job:{next(iter(jobs))}/replica:0/task:0",
        cluster_register_timeout_in_ms=round(1000 * join_timeout),
        heartbeat_timeout_in_ms=round(1000 * worker_timeout),
        coordinated_jobs=list(listed),
    )
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's handler would run only after TensorFlow's wait.
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except tf.errors.OpError as error:
        raise UserError(
            f"TF_CONFIG={os.environ['TF_CONFIG']}: cannot join the cluster: {error.message}; check that every "
            "worker runs and can be reached at its address"
        ) from error
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)  # TensorFlow has installed a handler of its own for SIGTERM.


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
        cluster = {"chief" if job == "master" else job: tasks for job, tasks in config.get("cluster", {}).items()}
        if not all(isinstance(tasks, list) for tasks in cluster.values()):
            raise TypeError("addresses must be in lists")
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
