"""Where the runs of a grid run: processes of this machine, one a GPU or a share of the cores, or a Dask scheduler."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from lgekit.errors import InputError

if TYPE_CHECKING:
    from distributed import Client

LOCAL = {
    "distributed.scheduler.worker-saturation": 1.0,  # no run waits behind a long one
    "distributed.worker.profile.enabled": False,  # it would sample each process a hundred times a second
}
BYTES_A_RUN = 3e9  # memory left free for each run: torch, a cohort and a small model


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus() -> list[str]:
    """Names of the GPUs to use, as ``CUDA_VISIBLE_DEVICES`` takes them; found without importing torch."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name and name != "-1"]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [str(number) for number, line in enumerate(listed.stdout.splitlines()) if line.startswith("GPU ")]


@contextlib.contextmanager
def connect(scheduler: str | None, workers: int | None, runs: int) -> Iterator[tuple[Client, int, dict[str, float]]]:
    """A Dask client for so many runs, closed at the end with the processes it started.

    Args:
        scheduler: address of a running scheduler, or None: processes of this machine.
        workers: how many of them; None: one a GPU, or one a core as far as the memory goes.
        runs: no more workers than runs.

    Yields:
        The client; how many runs a host carries at a time; the resources that each run needs.

    Raises:
        InputError: no scheduler answers there.
    """
    import dask
    import psutil
    from distributed import Client, Nanny, Scheduler, SpecCluster

    if scheduler is not None:
        try:
            client = Client(scheduler, timeout=10)
        except (OSError, ValueError) as error:
            raise InputError("scheduler", f"{scheduler!r} does not answer", "Start it: `dask scheduler`") from error
        with client:
            client.wait_for_workers(1)  # for what runs need is read from the workers that are there
            there = client.scheduler_info(n_workers=-1)["workers"].values()
            hosts = Counter()  # type: Counter[str]
            for worker in there:
                hosts[worker["host"]] += worker["nthreads"]
            needs = {"GPU": 1.0} if any("GPU" in worker["resources"] for worker in there) else {}
            yield client, max(hosts.values(), default=1), needs
        return
    devices = gpus()
    fitting = min(cores(), max(1, int(psutil.virtual_memory().available / BYTES_A_RUN)))
    count = max(1, min(workers or len(devices) or fitting, runs))
    specs: dict[int, dict[str, Any]] = {}
    for number in range(count):
        options: dict[str, Any] = {"nthreads": 1, "memory_limit": 0, "silence_logs": logging.CRITICAL}
        if devices:
            options["env"] = {"CUDA_VISIBLE_DEVICES": devices[number % len(devices)]}  # one thread, one GPU
        specs[number] = {"cls": Nanny, "options": {**options, "host": "127.0.0.1", "dashboard": False}}
    watch = {"dashboard": find_spec("bokeh") is not None, "dashboard_address": "127.0.0.1:0"}
    here = {"cls": Scheduler, "options": {"host": "127.0.0.1", "port": 0, **watch}}
    with (
        dask.config.set(LOCAL),
        SpecCluster(workers=specs, scheduler=here, silence_logs=logging.CRITICAL) as cluster,
        Client(cluster) as client,
    ):
        # A worker has one thread and one GPU: none need be asked for, and Dask would deal runs with needs out at once
        # instead of giving a worker the next one when it is free.
        yield client, count, {}
