import os
import signal
import time

import pytest

from data_gen.dataset import partial_of
from photonic_essl import records, runs
from photonic_essl.finetuning import finetune


def test_a_run_that_was_killed_before_its_first_record_begins_anew(tmp_path):
    partial_of(tmp_path / "run.json").write_text("{")
    run = runs.Run(tmp_path, "finetune", {"epochs": 1})
    with run.sitting():
        assert records.read_record(tmp_path / "run.json")["settings"] == {"epochs": 1}
        with pytest.raises(ValueError, match=f"another process is at work in {tmp_path} right now"):
            runs.Run(tmp_path, "finetune", {"epochs": 1}).sitting().__enter__()
    with run.sitting():
        assert len(run.record["sittings"]) == 2
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="exists and is not the folder of a run"):
        runs.Run(tmp_path / "elsewhere", "finetune", {})


def test_a_run_that_is_killed_leaves_its_lock_to_no_process_that_it_forked(tmp_path):
    run = runs.Run(tmp_path, "finetune", {"epochs": 1})
    killed = os.fork()
    if not killed:
        try:
            with run.sitting():
                if os.fork():  # as for workers that read images
                    time.sleep(1)
                    os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(5)
        finally:
            os._exit(0)  # never back into the tests
    os.waitpid(killed, 0)
    with run.sitting():
        assert len(records.read_record(tmp_path / "run.json")["sittings"]) == 2


def test_a_run_that_left_nothing_may_be_replaced_but_never_a_model(tmp_path):
    first, second = (runs.Run(tmp_path, "finetune", {"epochs": epochs}) for epochs in (1, 2))
    with first.sitting():
        (tmp_path / "logs").mkdir()
    with second.sitting():
        record = records.read_record(tmp_path / "run.json")
        assert (record["settings"], len(record["sittings"])) == ({"epochs": 2}, 1)
        assert not (tmp_path / "logs").exists()
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match="holds a run with other settings"):
        runs.Run(tmp_path, "finetune", {"epochs": 3})


def test_what_others_did_between_the_first_look_and_the_lock_is_seen(tmp_path):
    settings = {"epochs": 1}
    one, same, other = (runs.Run(tmp_path, "finetune", given) for given in (settings, settings, {"epochs": 2}))
    with one.sitting():
        one.checkpoint.parent.mkdir()
        one.checkpoint.touch()
    with pytest.raises(ValueError, match="holds a run with other settings"), other.sitting():
        pass
    with same.sitting():
        assert len(same.record["sittings"]) == 2
        same.finish()
    with pytest.raises(ValueError, match="another process has finished the run"), one.sitting():
        pass
    assert records.read_record(tmp_path / "run.json") == same.record


def test_the_precision_that_trains_is_recorded(labelled, tmp_path):
    finetune(labelled, tmp_path / "run", labels=5, epochs=1, device="cpu", progress=False)
    assert records.read_record(tmp_path / "run" / "run.json")["settings"]["precision"] == "32-true"
