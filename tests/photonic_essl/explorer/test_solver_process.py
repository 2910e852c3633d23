import json
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from photonic_essl.explorer.solver_process import SolverDiedError, SolverProcess, SupersededError

CELL = json.dumps({"family": "rods", "resolution": 16})


@pytest.fixture(scope="module")
def solver():
    process = SolverProcess()
    yield process
    process.close()


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
    outcomes = {}
    threads = []
    for number, name in enumerate(("first", "second", "third")):
        threads.append(in_thread(outcomes, name, solver))
        wait_until(lambda asked=number + 1: solver.newest == asked and solver.busy)
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
    with pytest.raises(SolverDiedError, match=r"died \(exit status -9\); try again with a new one"):
        solver.ask("draw", CELL)
    assert solver.ask("draw", CELL)["epsilon"].shape == (16, 16)


def test_the_process_ends_with_the_pages():
    program = (
        "import time; from photonic_essl.explorer.solver_process import SolverProcess; "
        "print(SolverProcess().peer.process.pid, flush=True); time.sleep(600)"
    )
    page = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    solver = psutil.Process(int(page.stdout.readline()))
    page.kill()
    page.communicate()
    assert not psutil.wait_procs([solver], timeout=60)[1]
