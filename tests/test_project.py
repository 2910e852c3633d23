"""What holds of the project as a whole: its packages, its imports, its types, its words, what is installed of it."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from jaxtyping import TypeCheckError

from data_gen.dos import bend

ROOT = Path(__file__).parent.parent
CONDA_NAMES = {
    "torch": "pytorch",
    "matplotlib": "matplotlib-base",
    "dask": "dask-core",
    "docstring-parser": "docstring_parser",
    "playwright": "playwright-python",
}
ONLY_CONDA = {"python", "pymeep"}


def split(requirement):
    name, bound = re.fullmatch(r"([A-Za-z0-9_-]+)(?:\[\w+\])?(>=.*)", requirement).groups()
    return name, bound


def test_environment_yml_and_pyproject_list_the_same_packages():
    tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pip = dict(map(split, project["dependencies"] + project["optional-dependencies"]["test"]))
    pip = {CONDA_NAMES.get(name, name): bound for name, bound in pip.items()}
    conda = dict(map(split, yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]))
    assert {name: bound for name, bound in conda.items() if name not in ONLY_CONDA} == pip
    assert conda["python"] == project["requires-python"]


def test_no_room_imports_what_it_must_not():
    for room, allowed in (
        ("data_gen", set()),
        ("photonic_essl", {"data_gen.dataset", "data_gen.command_line", "data_gen.messages", "data_gen"}),
    ):
        for path in (ROOT / room).rglob("*.py"):
            for line in path.read_text().splitlines():
                found = re.match(
                    r"\s*(?:from|import) ((?:data_gen|photonic_essl|experiments)[\w.]*)(?: import (\w+))?", line
                )
                if found and not found[1].startswith(room):
                    assert found[1] in allowed, f"{path}: {line}"
                    assert found[1] != "data_gen" or found[2] in (None, "open_dataset"), f"{path}: {line}"


def test_words_are_spelt_right():
    done = subprocess.run(
        [sys.executable, "-m", "codespell_lib"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_a_wrong_order_of_axes_is_noticed_wherever_tests_run():
    velocity = torch.zeros(1, 4, 2, 3, dtype=torch.float64)  # (sample, k, axis, band) in place of (…, band, axis)
    with pytest.raises(TypeCheckError, match="group_velocity"):
        bend(velocity, 2, np.eye(2))


UNPACKED_SOURCE = """
import tarfile
from setuptools import build_meta

with tarfile.open(build_meta.build_sdist(".")) as archive:
    archive.extractall("unpacked", **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
"""
WHEEL = "from setuptools import build_meta; build_meta.build_wheel('.')"


def test_a_wheel_made_from_the_source_distribution_holds_every_file_of_the_packages(tmp_path):
    listed = subprocess.run(["git", "ls-files", "data_gen", "photonic_essl"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("needs a checkout")
    pytest.importorskip("setuptools")
    unneeded = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", "build", "dist", "runs", "site")
    source = shutil.copytree(ROOT, tmp_path / "source", ignore=unneeded)
    subprocess.run([sys.executable, "-c", UNPACKED_SOURCE], cwd=source, check=True, capture_output=True)
    (unpacked,) = (source / "unpacked").iterdir()
    assert (unpacked / "LICENSE").exists()
    subprocess.run([sys.executable, "-c", WHEEL], cwd=unpacked, check=True, capture_output=True)
    (wheel,) = unpacked.glob("*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == set(listed.stdout.split())


@pytest.mark.slow
def test_both_packages_are_strictly_typed():
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_parts_of_data_gen_are_there_after_importing_it_alone():
    code = "import data_gen; data_gen.lattices.basis_vectors('hexagonal'); data_gen.unit_cells; data_gen.label"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
