import subprocess
import sys
import time

import psutil
import pytest

PARENT = """
import time
from experiments.processes import process_pool

with process_pool(1) as pool:
    print(pool.submit(abs, -1).result(), flush=True)
    pool.submit(time.sleep, 600)
    time.sleep(600)
"""


@pytest.mark.slow
def test_a_pools_processes_end_with_a_parent_that_is_killed():
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "1\n"
        time.sleep(0.2)
        started = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    assert started
    _, alive = psutil.wait_procs(started, timeout=60)
    assert not alive
