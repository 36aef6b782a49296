"""Beam's runners: checks a Dask cluster before a job, waits for the job, and says in one line why any runner failed."""

import contextlib
import logging as python_logging
import os
import re
import time
import traceback
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from absl import logging

from cats_vs_dogs import files, utils

if TYPE_CHECKING:
    from apache_beam import Pipeline
    from apache_beam.options.pipeline_options import PipelineOptions

_DASK = "apache_beam.runners.dask.dask_runner.DaskRunner"

# How long a job goes on without any Dask worker, seconds. A cluster may start its workers after the job.
_PATIENCE = 300

# How often it is checked whether there are workers, seconds.
_POLL = 5


def import_dask(beam_flags: Sequence[str]) -> None:
    """Imports Dask's runner if flags name it, so that Beam knows its flags.

    Raises:
        UserError: if Dask is not installed.
    """
    if not any("dask" in flag.lower() for flag in beam_flags):
        return
    try:
        import distributed  # noqa: F401
        from apache_beam.runners.dask import dask_runner  # noqa: F401
    except ImportError as error:
        raise utils.UserError(f"Dask cannot be imported ({error}); pip install -e '.[dask]'") from error
    # Dask logs a traceback when a connection is lost. The kit says in one line what ends the job.
    for name in ("distributed", "distributed.client"):  # The latter has a level of its own.
        python_logging.getLogger(name).setLevel(python_logging.CRITICAL)


def name_of(options: "PipelineOptions") -> str:
    """Returns the runner's name without its module, in lower case and without "runner": direct, dask, flink."""
    from apache_beam.options.pipeline_options import StandardOptions

    name = options.view_as(StandardOptions).runner or "direct"
    return name.rpartition(".")[2].lower().removesuffix("runner")


def open_pipeline(options: "PipelineOptions", paths: Sequence[str]) -> "Pipeline":
    """Returns an empty pipeline for the runner that the options name. A Dask cluster is checked first.

    Args:
        options: Beam's options. Dask's name is made complete.
        paths: files and folders that every worker must see.

    Raises:
        UserError: if there is no such runner, or the cluster cannot run the job.
    """
    from apache_beam import Pipeline
    from apache_beam.options.pipeline_options import StandardOptions

    if name_of(options) == "dask":
        options.view_as(StandardOptions).runner = _DASK
        _check_cluster(options, paths)
    try:
        return Pipeline(options=options)
    except (ImportError, RuntimeError, ValueError) as error:
        raise utils.UserError(f"Beam cannot run this: {error}") from error


def set_partitions(options: "PipelineOptions", count: int) -> None:
    """Lets Dask hand out elements one by one, unless the user wants something else. Other runners do so by themselves.

    Dask would put 128 elements into one partition, which one worker gets.

    Args:
        options: Beam's options, which are changed.
        count: number of elements that the pipeline begins with.
    """
    if name_of(options) != "dask":
        return
    from apache_beam.runners.dask.dask_runner import DaskOptions

    dask = options.view_as(DaskOptions)
    if not dask.npartitions and not dask.partition_size:
        dask.npartitions = count


def _check_cluster(options: "PipelineOptions", paths: Sequence[str]) -> None:
    """Raises a UserError unless a Dask cluster answers, has a worker, and all of it has the kit and sees the files."""
    import distributed
    from apache_beam.runners.dask.dask_runner import DaskOptions

    dask = options.view_as(DaskOptions)
    if not dask.address and not dask.scheduler_file:  # Dask will start workers on this machine.
        return
    flag = f"--dask_client_address={dask.address}" if dask.address else f"--dask_scheduler_file={dask.scheduler_file}"
    if dask.scheduler_file and not os.path.exists(dask.scheduler_file):  # Dask would wait for it for ever.
        raise utils.UserError(f"{flag}: no such file; dask scheduler writes it if it gets --scheduler-file")
    settings = {"timeout": dask.timeout} if dask.timeout else {}
    try:
        client = distributed.Client(dask.address, scheduler_file=dask.scheduler_file, set_as_default=False, **settings)
    except (OSError, ValueError, distributed.TimeoutError) as error:
        raise utils.UserError(
            f"{flag}: no Dask scheduler answers there ({_in_short(error)}); start one in the kit's environment with "
            "dask scheduler, and give the address that it shows"
        ) from error
    with client:
        address = client.scheduler.address
        if not client.scheduler_info()["workers"]:
            logging.info("waiting for a Dask worker; to start one in the kit's environment: dask worker %s", address)
            try:
                client.wait_for_workers(1, timeout=_PATIENCE)
            except distributed.TimeoutError as error:
                raise utils.UserError(_no_workers(address)) from error
        versions = client.get_versions()
        lacks = {"scheduler": _other_python(versions, versions["scheduler"])}
        lacks |= {
            f"worker {worker}": _other_python(versions, version) for worker, version in versions["workers"].items()
        }
        if not any(lacks.values()):  # A function cannot be sent to another version of Python.
            lacks["scheduler"] = client.run_on_scheduler(_lack())
            answers = client.run(_lack(paths), on_error="return")
            lacks |= {f"worker {worker}": answer for worker, answer in answers.items()}
    for place, lack in lacks.items():
        if isinstance(lack, Exception):
            raise utils.UserError(
                f"the Dask {place} does not answer ({_in_short(lack)}); end it, and start it again if the machine "
                f"runs: dask worker {address}"
            )
        if lack.startswith("has no "):
            raise utils.UserError(f"the Dask {place} {lack}; name files and folders that all machines share")
        if lack:
            command = "dask scheduler" if place == "scheduler" else f"dask worker {address}"
            raise utils.UserError(
                f"the Dask {place} {lack}; install the kit there in the versions of this environment "
                f"(pip install -e '.[dask]'), and start it again from there: {command}"
            )


def _other_python(versions: dict[str, Any], version: dict[str, Any]) -> str:
    """Returns which Python a process of a cluster has if it is not that of this process.

    Args:
        versions: what `Client.get_versions` returned.
        version: what it says of the process.
    """
    here, there = (".".join(one["host"]["python"].split(".")[:2]) for one in (versions["client"], version))
    return "" if here == there else f"has Python {there}, not {here}"


def _lack(paths: Sequence[str] = ()) -> Any:
    """Returns a function that says what a process of the cluster lacks, "" if nothing.

    Dask sends a function of a module as its name, but the process may lack that module. A function inside a function is
    sent as it is.
    """
    import apache_beam
    import tensorflow as tf

    here = (apache_beam.__version__, tf.__version__)

    def lack() -> str:
        try:
            import apache_beam
            import tensorflow as tf

            import cats_vs_dogs  # noqa: F401
        except ImportError as error:
            return f"cannot import what the job needs ({error})"
        there = (apache_beam.__version__, tf.__version__)
        if there != here:
            return "has Beam {} and TensorFlow {}, not {} and {}".format(*there, *here)
        missing = [path for path in paths if "://" not in path and not os.path.exists(path)]
        return f"has no {missing[0]}" if missing else ""

    return lack


def _no_workers(address: str) -> str:
    return (
        f"the Dask scheduler {address} has had no worker for {_PATIENCE} seconds; start some in the kit's environment: "
        f"dask worker {address}"
    )


def wait(result: Any) -> None:
    """Returns when a job has ended.

    Args:
        result: what `Pipeline.run` returned.

    Raises:
        UserError: if a Dask cluster has no worker for long, or its scheduler is lost.
    """
    client = getattr(result, "client", None)
    if client is None:
        result.wait_until_finish()
        return
    import distributed

    address, last_seen = client.scheduler.address, time.monotonic()
    with client:
        while True:
            with contextlib.suppress(distributed.TimeoutError):
                result.wait_until_finish(_POLL * 1000)
                break
            if client.scheduler_info()["workers"]:
                last_seen = time.monotonic()
            elif time.monotonic() - last_seen > _PATIENCE:
                raise utils.UserError(_no_workers(address))
        if any(future.status != "finished" for future in result.futures):  # Beam takes cancelled for done.
            raise utils.UserError(
                f"the Dask scheduler {address} was lost; start it and its workers, then the job again"
            )


@contextlib.contextmanager
def failures_in_one_line(options: "PipelineOptions") -> Iterator[None]:
    """Turns what a runner raises inside the block into a UserError.

    A fault of the kit keeps its traceback with DirectRunner, where nothing but this machine can fail.
    """
    import tensorflow as tf
    from apache_beam.options.pipeline_options import StandardOptions

    try:
        yield
    except utils.UserError as error:
        raise utils.UserError(_without_step(str(error))) from error
    except Exception as error:
        # Runners raise errors of their own, with the text of the worker's error: this kit's, or TensorFlow's about a
        # file. Dask raises the worker's error itself.
        reasons = re.findall(rf"(?:{utils.UserError.__name__}|errors_impl\.\w+): (.*)", str(error))
        if isinstance(error, tf.errors.OpError):
            reasons.append(files.explain_error(error))
        if reasons:
            raise utils.UserError(f"the job ended without results: {_without_step(reasons[-1])}") from error
        if name_of(options) == "direct":
            raise
        logging.debug("%s", traceback.format_exc())
        runner = options.view_as(StandardOptions).runner.rpartition(".")[2]
        advice = "leave --runner out to predict on this machine"
        if name_of(options) == "dask":
            advice = "the logs of the scheduler and the workers say more; if memory was short, lower --batch_size"
        raise utils.UserError(f"--runner={runner} failed: {_in_short(error)}; {advice}") from error


def _without_step(message: str) -> str:
    """Returns a message without the name of the pipeline's step, which Beam adds."""
    return re.sub(r" \[while running '.*?'\]$", "", message)


def _in_short(error: Exception) -> str:
    """Returns an error's type and message in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
