"""Where the chunks of a run are computed: in this process, on a local dask cluster, or on an existing one.

A chunk whose worker dies is tried again, then cut in halves until the guilty cell is alone; that cell is recorded as
failed and the rest goes on.
"""

import contextlib
import ctypes
import functools
import itertools
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from data_gen.shards import Chunk

if TYPE_CHECKING:
    from distributed import Client, LocalCluster

FAILURES_BEFORE_BISECTION = 1
PATIENCE = "5 minutes"  # without a worker on this machine, which should start others for those that die
CONNECTING = "10s"  # before an address counts as that of no scheduler
CHUNKS_AHEAD = 4  # of each worker: enough to keep it busy, few enough to keep their results out of memory

Arrays = dict[str, np.ndarray]
Compute = Callable[[int, int], Arrays]
Fail = Callable[[int, str], Arrays]
Join = Callable[[list[Arrays]], Arrays]


def run_chunks(
    compute: Compute, fail: Fail, join: Join, chunks: list[Chunk], workers: int | None, scheduler: str | None
) -> Iterator[tuple[Chunk, Arrays]]:
    """Compute all chunks and yield each with its arrays, as they finish.

    Args:
        compute: (start, stop) → arrays of these cells; picklable by dask.
        fail: (index, message) → arrays that record that this cell failed.
        join: arrays of consecutive cells → arrays of all of them.
        chunks: what to compute.
        workers: processes of a local cluster; one for each core where None. One works in this process, which then ends
            with whatever cell ends it.
        scheduler: address of an existing dask scheduler to use instead.

    Raises:
        ValueError: if there is no scheduler at that address.
        OSError: if all worker processes on this machine are gone, and none come after them.
        RuntimeError: if none can be started.
    """
    workers = workers or len(os.sched_getaffinity(0))
    if scheduler is None and workers == 1:
        for chunk in chunks:
            yield chunk, compute(*chunk)
        return
    with _client(workers, scheduler) as client:
        yield from _run_on_dask(client, compute, fail, join, chunks)


def _run_on_dask(
    client: "Client", compute: Compute, fail: Fail, join: Join, chunks: list[Chunk]
) -> Iterator[tuple[Chunk, Arrays]]:
    from distributed import KilledWorker, as_completed
    from distributed.scheduler import NoWorkerError

    waiting = iter(chunks)
    running = {}
    finished = as_completed()

    def submit(start: int, stop: int, chunk: Chunk) -> None:
        future = client.submit(compute, start, stop, pure=False)
        running[future] = (start, stop, chunk)
        finished.add(future)

    def fill_up() -> None:
        # Workers may join at any time, as those of a cluster's queue do.
        wanted = CHUNKS_AHEAD * max(1, sum(client.nthreads().values()))
        for chunk in itertools.islice(waiting, max(0, wanted - len(running))):
            submit(*chunk, chunk)

    parts: dict[Chunk, dict[Chunk, Arrays]] = {}
    fill_up()
    for future in finished:
        start, stop, chunk = running.pop(future)
        try:
            arrays = future.result()
        except KilledWorker:
            if stop - start > 1:
                middle = (start + stop) // 2
                submit(start, middle, chunk)
                submit(middle, stop, chunk)
                continue
            arrays = fail(start, "the worker process died on this cell")
        except NoWorkerError:
            raise OSError(
                "all worker processes are gone, for want of memory perhaps; the same command goes on, with fewer "
                "`workers` if that is why"
            ) from None
        done = parts.setdefault(chunk, {})
        done[start, stop] = arrays
        if sum(b - a for a, b in done) == chunk[1] - chunk[0]:
            del parts[chunk]
            yield chunk, join([done[part] for part in sorted(done)])
            fill_up()


@contextlib.contextmanager
def _client(workers: int, scheduler: str | None) -> Iterator["Client"]:
    import dask
    from distributed import Client

    settings = {
        "distributed.scheduler.allowed-failures": FAILURES_BEFORE_BISECTION,
        "distributed.scheduler.no-workers-timeout": PATIENCE,
        "distributed.scheduler.worker-saturation": 1.0,  # a worker that dies is blamed on what it ran, not on its queue
        "distributed.worker.memory.terminate": 0.95,
        "distributed.worker.profile.enabled": False,  # nobody looks at it
        "distributed.comm.timeouts.connect": CONNECTING,
    }
    with dask.config.set(settings), contextlib.ExitStack() as stack:
        if scheduler is None:
            with _interrupts_held():
                scheduler = stack.enter_context(_local_cluster(workers))
        try:
            client = stack.enter_context(Client(scheduler))
        except (OSError, ValueError, TimeoutError) as error:
            raise ValueError(f"no dask scheduler at {scheduler!r}: {error}") from None
        yield client


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back; threads and processes that are started here never see it, and end with what started them.

    They inherit the mask. Other threads of this process have none, and let an interrupt through to Python's handler.
    """
    noted: list[int] = []
    in_main_thread = threading.current_thread() is threading.main_thread()
    resource_tracker.ensure_running()  # which lets interrupts through where it starts
    handler = signal.signal(signal.SIGINT, lambda number, _: noted.append(number)) if in_main_thread else None
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if in_main_thread:
            signal.signal(signal.SIGINT, handler or signal.SIG_DFL)
    if noted:
        raise KeyboardInterrupt


def _local_cluster(workers: int) -> "LocalCluster":
    from distributed import LocalCluster

    try:
        return LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            dashboard_address="127.0.0.1:0",  # a free port: none is fixed, for other runs have theirs
            silence_logs=logging.CRITICAL,
        )
    except RuntimeError as error:
        raise RuntimeError(
            f"worker processes cannot be started ({error}): they import the script that calls this anew, so that it "
            "has to call it under `if __name__ == '__main__':`, or with `workers=1`"
        ) from None


@functools.cache
def keep_freed_memory() -> None:
    """Let this process keep memory that it has freed for its next arrays, where the C library is glibc.

    Dask starts workers with settings that return it to the system at once, which has to clear it again for each array:
    half as long again for every label.
    """
    trim_threshold, mmap_threshold = -1, -3  # of mallopt(3)
    with contextlib.suppress(AttributeError, OSError):
        library = ctypes.CDLL(None)
        library.mallopt(trim_threshold, 2**28)
        library.mallopt(mmap_threshold, 2**25)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread: workers share the cores, and sums come in the same order on any machine."""
    threads = torch.get_num_threads()
    with threadpool_limits(limits=1):
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
