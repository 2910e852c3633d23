import sys
import warnings
from pathlib import Path

import pytest

from data_gen.command_line import run

received = []


def generate(
    family: str,
    /,
    *,
    out: str | Path,
    samples: int = 3,
    k_points: int | None = None,
    scheduler: str | None = None,
    keep_bands: bool = False,
    widths: list[int] | None = None,
) -> None:
    """Write a dataset of cells.

    Args:
        family: name of the family.
        out: file to write.
        samples: how many cells.
        k_points: points along each reciprocal vector.
        scheduler: address of a scheduler.
        keep_bands: also write the bands.
        widths: of layers, by 50 % more each.

    Raises:
        ValueError: if `samples` is less than 1.
    """
    if samples < 1:
        raise ValueError(f"`samples` must be\nat least 1, got {samples}.")
    received.append((family, out, samples, k_points, scheduler, keep_bands, *(widths or ())))


def interrupted() -> None:
    """Stop as by Ctrl-C."""
    raise KeyboardInterrupt


def unlucky() -> None:
    """Fail for no fault of the user."""
    raise RuntimeError("the solver stopped")


def doubtful() -> None:
    """Do as asked, and say what is odd about it."""
    warnings.warn("these are\nodd labels", stacklevel=1)


COMMANDS = {
    "generate": generate,
    "interrupted": interrupted,
    "unlucky": unlucky,
    "lazy": "module_that_is_not:there",
    "doubtful": doubtful,
    "group": {"generate": generate, "unlucky": unlucky},
}


def call(*arguments: str) -> int:
    try:
        return run("data-gen", COMMANDS, arguments)
    except SystemExit as stop:
        return stop.code


def test_options_are_the_functions_parameters_with_dashes():
    received.clear()
    assert call("generate", "blob", "--out", "x.nc", "--k-points", "5", "--keep-bands") == 0
    assert call("generate", "gpm", "--samples=7", "--scheduler", "tcp://a:1", "--out", "y", "--no-keep-bands") == 0
    assert call("generate", "blob", "--widths", "8", "12", "--out", "z") == 0
    assert received == [
        ("blob", "x.nc", 3, 5, None, True),
        ("gpm", "y", 7, None, "tcp://a:1", False),
        ("blob", "z", 3, None, None, False, 8, 12),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no command given; the commands are generate, interrupted, unlucky, lazy"),
        (("make",), "unknown command 'make'; the commands are generate"),
        (("generate", "blob"), "missing --out"),
        (("generate", "--out", "x"), "missing family"),
        (("generate", "blob", "--out", "x", "--samples", "0"), "`samples` must be at least 1, got 0."),
        (("generate", "blob", "--out", "x", "--samples", "many"), "`--samples` must be a whole number, got 'many'"),
        (("generate", "blob", "--out", "x", "--k-points", "a"), "`--k-points` must be a whole number, got 'a'"),
        (
            ("generate", "blob", "--out", "x", "--widths", "8", "b"),
            "`--widths` must be a whole number, or several, got",
        ),
        (("generate", "blob", "--out", "x", "--colour", "red"), "unrecognized arguments: --colour red"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, message, capsys):
    assert call(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("data-gen: error: ")
    assert message in error
    assert error.count("\n") == 1


def test_other_failures_are_one_line_too(capsys):
    assert call("unlucky") == 1
    assert capsys.readouterr().err == "data-gen: error: the solver stopped\n"
    assert call("interrupted") == 130
    assert capsys.readouterr().err.count("\n") == 1


def test_debug_shows_the_traceback(capsys):
    assert call("unlucky", "--debug") == 1
    assert "Traceback" in capsys.readouterr().err


def test_help_comes_from_the_docstring_and_loads_only_what_it_shows(capsys):
    poem = {"poem": "this:s"}  # in a module of Python's that nothing imports
    with pytest.raises(SystemExit) as stop:
        run("data-gen", COMMANDS | poem, ["generate", "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for text in (
        "Write a dataset of cells.",
        "--k-points",
        "points along each reciprocal vector",
        "of layers, by 50 % more each",
        "default: 3",
    ):
        assert text in shown
    assert "this" not in sys.modules


def test_overview_says_what_each_command_does_without_importing_it(capsys):
    commands = {"generate": generate, "verify": "data_gen.verification:verify"}
    with pytest.raises(SystemExit) as stop:
        run("data-gen", commands, ["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "generate        Write a dataset of cells." in shown
    assert "verify        " in shown


def test_an_overview_of_a_command_that_is_not_there_names_it(capsys):
    assert call("--help") == 1
    assert capsys.readouterr().err == "data-gen: error: ModuleNotFoundError: no module named 'module_that_is_not'\n"


def test_version(capsys):
    assert call("--version") == 0
    assert capsys.readouterr().out.startswith("data-gen ")


def test_commands_of_a_group_are_called_by_two_words(capsys):
    received.clear()
    assert call("group", "generate", "blob", "--out", "cells.h5") == 0
    assert received == [("blob", "cells.h5", 3, None, None, False)]
    assert call("group", "unlucky") == 1
    assert capsys.readouterr().err == "data-gen group: error: the solver stopped\n"
    assert call("--debug", "group", "unlucky") == 1
    assert "Traceback" in capsys.readouterr().err
    assert call("group") == 2
    assert "no command given; the commands are generate, unlucky" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("data-gen", {"group": COMMANDS["group"]}, ["--help"])
    assert "group           A group of commands: generate, unlucky." in capsys.readouterr().out


def test_warnings_are_one_line(capsys):
    usual = warnings.formatwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda *warning: sys.stderr.write(warnings.formatwarning(*warning[:4]))
        assert call("doubtful") == 0
    assert capsys.readouterr().err == "data-gen: warning: these are odd labels\n"
    assert warnings.formatwarning is usual
