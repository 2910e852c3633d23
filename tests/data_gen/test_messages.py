import subprocess
import sys
from pathlib import Path

import psutil

import data_gen.messages

# As the interpreter that has MPB reads it: by itself, without the package.
ALONE = f"import sys, time; sys.path.insert(0, {str(Path(data_gen.messages.__file__).parent)!r}); import messages; "
BUSY = "messages.end_with_parent(); time.sleep(600)"
PARENT = "peer = messages.Peer([sys.executable, '-c', sys.argv[1]]); print(peer.process.pid, flush=True); "


def killed_parents_child(parent, child):
    """Return the process that a parent has started, after the parent was killed."""
    command = [sys.executable, "-c", ALONE + PARENT + parent, ALONE + child]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        started = psutil.Process(int(process.stdout.readline()))
        process.kill()
    return started


def test_a_busy_peer_ends_with_a_parent_that_is_killed():
    _, alive = psutil.wait_procs([killed_parents_child("time.sleep(600)", BUSY)], timeout=60)
    assert not alive


def test_a_peer_ends_with_a_parent_that_died_before_it_could_look():
    _, alive = psutil.wait_procs([killed_parents_child("time.sleep(600)", "time.sleep(1); " + BUSY)], timeout=60)
    assert not alive


def test_a_peer_lives_on_when_the_thread_that_started_it_ends():
    start = "peers.append(messages.Peer([sys.executable, '-c', sys.argv[1]]))"
    parent = (
        f"import threading; peers = []; thread = threading.Thread(target=lambda: {start}); thread.start(); "
        "thread.join(); print(peers[0].ask()['alive'])"
    )
    child = (
        "messages.end_with_parent(); messages.read_message(sys.stdin.buffer); time.sleep(0.5); "
        "messages.write_message(sys.stdout.buffer, alive=True)"
    )
    command = [sys.executable, "-c", ALONE + parent, ALONE + child]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "True\n"
