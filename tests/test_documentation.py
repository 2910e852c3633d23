"""The reference pages build without a warning, and hold every command and public function."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import data_gen
import photonic_essl
from data_gen import cli as data_gen_cli
from photonic_essl import cli as photonic_essl_cli

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The text of all reference pages, built strictly: a warning is an error."""
    for package in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(package, reason="needs the packages of the extra `docs`")
    site = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return "".join(page.read_text() for page in site.glob("reference/*.html"))


def named(commands):
    """Names of all commands, those of groups too."""
    for command in commands.values():
        yield from named(command) if isinstance(command, dict) else [command]


def test_every_command_and_public_function_has_an_entry(pages):
    entries = set(re.findall(r'id="((?:data_gen|photonic_essl)[\w.]*)"', pages))
    commands = [command.replace(":", ".") for command in named({**data_gen_cli.COMMANDS, **photonic_essl_cli.COMMANDS})]
    # A public function may stand under the package's own name.
    missing = [name for name in commands if not {name, f"{name.split('.')[0]}.{name.split('.')[-1]}"} & entries]
    public = {*data_gen.__all__, *photonic_essl._HOMES} - {entry.split(".")[-1] for entry in entries}
    assert not missing, f"these commands are on no page of docs/reference: {', '.join(missing)}"
    assert not public, f"these functions are on no page of docs/reference: {', '.join(public)}"


def test_nothing_is_fetched_from_elsewhere(pages):
    for attribute in ('src="http', 'rel="stylesheet" href="http', "fonts.g"):
        assert attribute not in pages
