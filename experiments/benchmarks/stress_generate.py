"""Kill workers and the parent of a `data-gen generate` run at random; the file must be that of a calm run, bit for bit.

    python -m experiments.benchmarks.stress_generate

Writes experiments/results/stress_generate.json.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

RESULT = Path("experiments/results/stress_generate.json")


def command(out: Path, samples: int, workers: int) -> list[str]:
    return [
        *(sys.executable, "-m", "data_gen.cli", "generate", "blob", "--out", str(out)),
        *("--samples", str(samples), "--seed", "11", "--workers", str(workers)),
    ]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def stress(out: Path, samples: int, kills: int, seed: int) -> dict[str, int]:
    """Run to the end, killing the parent or one of its workers at random until `kills` are done."""
    generator = random.Random(seed)
    done = {"worker": 0, "parent": 0}
    while not out.exists():
        process = subprocess.Popen(command(out, samples, 2), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while process.poll() is None:
            if sum(done.values()) == kills:
                process.wait()
                break
            time.sleep(generator.uniform(2, 8))
            workers = [child for child in psutil.Process(process.pid).children() if _is_worker(child)]
            if workers and generator.random() < 0.5:
                os.kill(generator.choice(workers).pid, signal.SIGKILL)
                done["worker"] += 1
            elif process.poll() is None and workers:
                process.send_signal(signal.SIGKILL)
                process.wait()
                done["parent"] += 1
    return done


def _is_worker(process: psutil.Process) -> bool:
    try:
        return "spawn_main" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        calm, stressed = Path(folder) / "calm.h5", Path(folder) / "stressed.h5"
        subprocess.run(command(calm, arguments.samples, 2), check=True)
        start = time.time()
        done = stress(stressed, arguments.samples, arguments.kills, arguments.seed)
        result = {
            "samples": arguments.samples,
            "kills": done,
            "seed": arguments.seed,
            "seconds": round(time.time() - start, 1),
            "same_bytes": digest(calm) == digest(stressed),
        }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    if not result["same_bytes"]:
        raise SystemExit("the stressed file differs from the calm one")


if __name__ == "__main__":
    main()
