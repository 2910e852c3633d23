import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import data_gen.cli
from data_gen import command_line
from data_gen.command_line import run
from photonic_essl import cli
from photonic_essl.cli import COMMANDS


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


COMMANDS_OF = {
    ("data-gen",): data_gen.cli.COMMANDS,
    ("photonic-essl",): {name: command for name, command in COMMANDS.items() if name != "vision"},
    ("photonic-essl", "vision"): COMMANDS["vision"],
}
ALL_COMMANDS = {
    (*words, name): command for words, commands in COMMANDS_OF.items() for name, command in commands.items()
}


@pytest.mark.parametrize("words", ALL_COMMANDS, ids=" ".join)
def test_help_explains_every_parameter_of_the_function(words, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    module, name = ALL_COMMANDS[words].split(":")
    with pytest.raises(SystemExit) as stop:
        run(words[0], data_gen.cli.COMMANDS if words[0] == "data-gen" else COMMANDS, [*words[1:], "--help"])
    assert stop.value.code == 0
    shown = re.sub(r"\n {10,}", "  ", capsys.readouterr().out)  # long options have a line of their own
    option = re.compile(
        r"^  (?:--)?([\w-]+)(?:, --no-[\w-]+)?(?: [A-Z_]+(?: \[[A-Z_]+ \.\.\.\])?| {[\w,]+})? {2,}(\w.*)$", re.MULTILINE
    )
    explained = {name.replace("-", "_"): told for name, told in option.findall(shown)}
    function = getattr(importlib.import_module(module), name)
    assert inspect.getdoc(command_line._outline(ALL_COMMANDS[words])) == inspect.getdoc(function)
    parameters = inspect.signature(function).parameters
    assert list(parameters.values()) == list(
        inspect.signature(command_line._outline(ALL_COMMANDS[words])).parameters.values()
    )
    assert set(parameters) <= set(explained)
    for parameter in parameters.values():
        if parameter.default is parameter.empty:
            assert explained[parameter.name].endswith("(required)")
        elif parameter.default is not None and parameter.default is not False:
            assert explained[parameter.name].endswith(f"(default: {parameter.default})")


def test_help_and_what_does_not_parse_load_no_torch():
    program = str(Path(sys.executable).with_name("photonic-essl"))
    timed = os.environ | {"PYTHONPROFILEIMPORTTIME": "1"}  # writes a line for each module that is imported
    for words, status in ((["finetune", "--help"], 0), (["pretrain", "--data", "a", "--epochs", "many"], 2)):
        done = subprocess.run([program, *words], capture_output=True, text=True, check=False, env=timed)
        assert done.returncode == status
        assert "torch" not in {line.split()[-1] for line in done.stderr.splitlines() if "import time:" in line}


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
