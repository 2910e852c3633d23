import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from photonic_essl import cli


def call(capsys, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["photonic-essl", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code, *capsys.readouterr()


def test_the_main_job_by_commands(unlabelled, labelled, tmp_path, capsys, monkeypatch):
    encoder, model = tmp_path / "encoder", tmp_path / "model"
    small = ("--epochs", 2, "--batch-size", 8, "--no-progress")
    asked = ("pretrain", "--data", unlabelled, "--out", encoder, "--recipe", "e-simclr", *small)
    assert call(capsys, monkeypatch, *asked)[0] == 0
    status, out, _ = call(capsys, monkeypatch, *asked)
    assert status == 0
    assert "finished; nothing was changed" in out
    tuned = ("finetune", "--data", labelled, "--out", model, "--pretrained", encoder, "--labels", 10, *small)
    assert call(capsys, monkeypatch, *tuned)[0] == 0
    status, out, _ = call(capsys, monkeypatch, "evaluate", "--model", model, "--data", labelled)
    assert status == 0
    assert re.search(r"relative error on 20 cells: [\d.]+ %", out)
    predicted = tmp_path / "dos.nc"
    assert call(capsys, monkeypatch, "predict", "--model", model, "--data", unlabelled, "--out", predicted)[0] == 0
    assert predicted.exists()


@pytest.mark.parametrize("name", ["pretrain", "finetune", "evaluate", "predict"])
def test_help_explains_every_option(name, capsys, monkeypatch):
    status, out, _ = call(capsys, monkeypatch, name, "--help")
    assert status == 0
    options = set(re.findall(r"^  (--[\w-]+)", out, re.MULTILINE))
    assert "--data" in options
    assert not [option for option in options if "_" in option]
    for line in re.split(r"\n  (?=-)", out.split("options:")[1])[1:]:
        assert re.search(r"[a-z]{3}.*\(|[a-z]{3}.*and exit", line.split(maxsplit=2)[-1], re.DOTALL), line


def test_a_mistake_is_one_line_and_status_2_and_does_not_wait_for_lightning(unlabelled, tmp_path):
    program = str(Path(sys.executable).with_name("photonic-essl"))
    arguments = ["evaluate", "--model", str(tmp_path), "--data", str(unlabelled)]
    timed = os.environ | {"PYTHONPROFILEIMPORTTIME": "1"}  # writes a line for each module that is imported
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False, env=timed)
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    imported = {line.split()[-1] for line in lines if line.startswith("import time:")}
    assert "torch" in imported
    assert "pytorch_lightning" not in imported
    (said,) = (line for line in lines if not line.startswith("import time:"))
    assert said.startswith("photonic-essl: error: ")
    assert "is unlabelled" in said
