import json
import os
import signal
import threading
import time

import pytest

from photonic_essl.explorer.solver_process import SolverDiedError, SupersededError

CELL = json.dumps({"family": "rods", "resolution": 16})


@pytest.fixture
def solver(session):
    return session.solving


def in_thread(outcomes, name, solver):
    def ask():
        try:
            outcomes[name] = solver.ask("solve", CELL)
        except SupersededError:
            outcomes[name] = None

    thread = threading.Thread(target=ask)
    thread.start()
    return thread


def wait_until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_a_newer_request_takes_the_place_of_one_that_waits(solver):
    outcomes, threads, before = {}, [], solver.newest
    os.kill(solver.peer.process.pid, signal.SIGSTOP)  # the first has not been answered before the others come
    for number, name in enumerate(("first", "second", "third"), start=1):
        threads.append(in_thread(outcomes, name, solver))
        wait_until(lambda number=number: solver.newest == before + number and solver.busy)
    os.kill(solver.peer.process.pid, signal.SIGCONT)
    for thread in threads:
        thread.join()
    assert outcomes["second"] is None
    assert "dos" in outcomes["first"]
    assert "dos" in outcomes["third"]


def test_a_mistake_comes_back_as_the_solvers_own_line(solver):
    with pytest.raises(ValueError, match=r"^unknown family 'rod'; the families are blob"):
        solver.ask("draw", json.dumps({"family": "rod"}))


def test_a_killed_process_is_replaced(solver):
    os.kill(solver.peer.process.pid, signal.SIGKILL)
    with pytest.raises(SolverDiedError, match=r"died \(status -9\); a new one has started"):
        solver.ask("draw", CELL)
    assert solver.ask("draw", CELL)["epsilon"].shape == (16, 16)
