import functools
import os
import signal
import threading

import numpy as np
import pytest

from data_gen import generation, workers
from data_gen.cli import COMMANDS
from data_gen.command_line import run


def test_a_worker_that_dies_on_a_cell_costs_that_cell():
    """The chunk is tried again, then halved until the guilty cell is alone."""
    plan = generation.Plan("rods", 8, 0, 8, False, None)

    def compute(start, stop):  # sent by value: workers that start again and again need not import what makes cells
        if start <= 5 < stop:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"status": np.zeros(stop - start, "i1"), "error_message": np.full(stop - start, b"", "S200")}

    def fail(index, message):
        cell = generation.failed_cell(plan, index, message)
        return {name: cell[name] for name in ("status", "error_message")}

    results = dict(workers.run_chunks(compute, fail, generation.join, [(0, 2), (4, 6)], 2, None))
    assert results[0, 2]["status"].tolist() == [0, 0]
    assert results[4, 6]["status"].tolist() == [0, 1]
    assert b"seed 0, index 5: the worker process died" in results[4, 6]["error_message"][1]


def test_workers_that_are_gone_are_said_and_not_waited_for(monkeypatch):
    monkeypatch.setattr(workers, "PATIENCE", "1s")
    record = (functools.partial(generation.failed_cell, None), generation.join)
    with (
        workers._client(0, None) as client,
        pytest.raises(OSError, match="all worker processes are gone"),
    ):
        list(workers._run_on_dask(client, range, *record, [(0, 1)]))


def test_an_interrupt_while_workers_start_comes_once_they_have():
    started, idle = [], threading.Event()
    other = threading.Thread(target=idle.wait)  # as that of a progress bar, which lets interrupts through

    def start():
        with workers._interrupts_held():
            os.kill(os.getpid(), signal.SIGINT)
            other.join(0.2)
            started.append("workers")

    other.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            start()
    finally:
        idle.set()
    assert started == ["workers"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_no_scheduler_at_an_address_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(workers, "CONNECTING", "1s")
    words = ["generate", "rods", "--samples", "2", "--unlabelled", "--scheduler", "tcp://127.0.0.1:9"]
    assert run("data-gen", COMMANDS, [*words, "--out", str(tmp_path / "a.h5")]) == 2
    assert "no dask scheduler at 'tcp://127.0.0.1:9'" in capsys.readouterr().err
