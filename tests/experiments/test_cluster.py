from pathlib import Path

import pytest

from experiments.cluster import slurm


def test_a_job_asks_for_what_the_settings_say():
    pytest.importorskip("dask_jobqueue")
    settings = slurm.read_settings(Path(slurm.__file__).with_name("slurm.yaml"))
    with slurm.slurm_cluster(settings) as cluster:
        script = cluster.job_script()
    for words in ("-p normal", "--cpus-per-task=32", "--nworkers 32", "--nthreads 1", "export OMP_NUM_THREADS=1"):
        assert words in script


def test_settings_that_are_none_are_refused(tmp_path):
    file = tmp_path / "slurm.yaml"
    for text, message in (("- 1", "must hold settings by name, got list"), ("a: [", "is no YAML")):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            slurm.read_settings(file)
