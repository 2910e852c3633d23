"""Start a dask scheduler with workers that SLURM provides, and keep it until interrupted.

    pip install 'photonic_essl[cluster]'
    python -m experiments.cluster.slurm --jobs 10
    data-gen generate blob --out blob.h5 --samples 1000000 --scheduler tcp://…    # the address that it prints

Queue, account, cores and wall time come from `slurm.yaml` beside this file: edit that.
"""

import argparse
import signal
from pathlib import Path

import dask
import yaml


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1, help="SLURM jobs to keep running")
    parser.add_argument("--config", type=Path, default=Path(__file__).with_name("slurm.yaml"))
    arguments = parser.parse_args()
    from dask_jobqueue import SLURMCluster

    dask.config.update_defaults(yaml.safe_load(arguments.config.read_text()))
    with SLURMCluster() as cluster:
        cluster.scale(jobs=arguments.jobs)
        print(f"scheduler: {cluster.scheduler_address}", flush=True)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})


if __name__ == "__main__":
    main()
