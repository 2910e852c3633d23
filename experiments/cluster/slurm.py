"""Start a dask scheduler with workers that SLURM provides, and keep it until interrupted.

    pip install 'photonic_essl[cluster]'
    python -m experiments.cluster.slurm --jobs 10
    data-gen generate blob --out blob.h5 --samples 1000000 --scheduler tcp://…    # the address that it prints

Queue, account, cores and wall time come from `slurm.yaml` beside this file: edit that.
"""

import argparse
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import yaml

if TYPE_CHECKING:
    from dask_jobqueue import SLURMCluster


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1, help="SLURM jobs to keep running")
    parser.add_argument("--config", type=Path, default=Path(__file__).with_name("slurm.yaml"))
    arguments = parser.parse_args()
    try:
        settings = read_settings(arguments.config)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    with slurm_cluster(settings) as cluster:
        cluster.scale(jobs=arguments.jobs)
        print(f"scheduler: {cluster.scheduler_address}", flush=True)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})


def slurm_cluster(settings: dict[str, Any]) -> "SLURMCluster":
    """Return a cluster without workers yet, with settings over the defaults of dask-jobqueue."""
    from dask_jobqueue import SLURMCluster  # which sets its defaults over what is there

    dask.config.update(dask.config.config, settings, priority="new")
    return SLURMCluster()


def read_settings(file: Path) -> dict[str, Any]:
    """Read settings of dask from YAML; raises `ValueError` if they are none."""
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(settings, dict) or not all(isinstance(name, str) for name in settings):
        raise ValueError(f"{file} must hold settings by name, got {type(settings).__name__}")
    return settings


if __name__ == "__main__":
    main()
