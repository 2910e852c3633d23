import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from distributed import Client

import data_gen
from data_gen import dataset as dataset_module
from data_gen import generation
from data_gen.cli import COMMANDS
from data_gen.command_line import run
from data_gen.dataset import replaced_when_complete
from data_gen.shards import open_shards
from data_gen.solvers import mpb
from data_gen.solvers.contract import ConvergenceError
from data_gen.unit_cells import unit_cell_family

LABELLED = ["--samples", "3", "--k-points", "5", "--bands", "6", "--resolution", "16"]


def run_data_gen(*words):
    return run("data-gen", COMMANDS, [str(word) for word in words])


def test_a_labelled_file_holds_cells_labels_parameters_and_how_it_was_made(tmp_path):
    out = tmp_path / "a.h5"
    data_gen.generate(
        "blob", out=out, samples=3, seed=5, k_points=9, bands=10, resolution=16, keep_bands=True, workers=1
    )
    with data_gen.open_dataset(out) as dataset:
        assert dataset.sizes["sample"] == 3
        assert {"epsilon_inside", "outline_cosine", "dos_error"} <= set(dataset.data_vars)
        assert (dataset.attrs["seed"], dataset.attrs["solver"], dataset.attrs["k_points"]) == (5, "rbme", 9)
        assert "data-gen generate blob --samples 3" in dataset.attrs["command"]
        cell = unit_cell_family("blob").draw(5, 2, 16).epsilon
        bands = data_gen.solve(cell, 9, bands=10, solver="rbme", resolution=16)
        np.testing.assert_allclose(dataset["band_frequency"][2], bands["frequency"], atol=1e-9)
        density = data_gen.density_of_states(bands, epsilon_mean=cell.mean())
        np.testing.assert_allclose(dataset["dos"][2], density, rtol=1e-5, atol=1e-5)
    assert not out.with_name("a.h5.part").exists()


@contextlib.contextmanager
def cluster_of(workers, folder):
    """A dask scheduler and its workers, started as a user starts them: its address, and the workers' processes."""
    address_file = folder / "scheduler.json"
    start = [sys.executable, "-m"]
    scheduler = ["distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    worker = ["distributed.cli.dask_worker", "--nthreads", "1", "--no-nanny", "--no-dashboard"]
    worker += ["--local-directory", folder]
    shared = ["--scheduler-file", address_file]
    processes = [subprocess.Popen([*start, *scheduler, *shared], stderr=subprocess.DEVNULL)]
    try:
        while not address_file.exists():
            time.sleep(0.05)
        for _ in range(workers):
            processes.append(subprocess.Popen([*start, *worker, *shared], stderr=subprocess.DEVNULL))
        address = json.loads(address_file.read_text())["address"]
        with Client(address) as client:
            client.wait_for_workers(workers)
        yield address, processes[1:]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def last_line(capsys):
    """Return the only line of standard error but for the progress bar."""
    error = capsys.readouterr().err
    assert "Traceback" not in error
    lines = [line for line in error.replace("\r", "\n").splitlines() if line.strip() and "%|" not in line]
    assert len(lines) == 1, error
    return lines[0]


@pytest.mark.mpb
def test_mpb_labels_are_those_of_the_fast_solver(tmp_path):
    for solver in ("mpb", "rbme"):
        run_data_gen(
            "generate", "rods", "--out", tmp_path / f"{solver}.h5", "--solver", solver, "--workers", 1, *LABELLED
        )
    with data_gen.open_dataset(tmp_path / "mpb.h5") as a, data_gen.open_dataset(tmp_path / "rbme.h5") as b:
        np.testing.assert_allclose(a["dos"][:, 100:400], b["dos"][:, 100:400], atol=2e-2)
        assert a.attrs["solver_version"].startswith("MPB")


def test_the_file_is_the_same_after_a_kill(tmp_path):
    command = [sys.executable, "-m", "data_gen.cli", "generate", "gpm", "--samples", "1100", "--unlabelled"]
    killed, calm = tmp_path / "killed.h5", tmp_path / "calm.h5"
    process = subprocess.Popen([*command, "--out", killed, "--workers", "1"], stderr=subprocess.DEVNULL)
    shards = tmp_path / "killed.h5.part"
    while process.poll() is None and not list(shards.glob("*.shard")):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not killed.exists()
    done = sorted(shards.glob("*.shard"))
    assert done
    done[0].write_bytes(done[0].read_bytes()[:-100])  # a truncated shard is computed again
    for out in (killed, calm):
        data_gen.generate("gpm", out=out, samples=1100, unlabelled=True, workers=1)
    assert killed.read_bytes() == calm.read_bytes()
    assert not shards.exists()


def holds_interrupts_back(process):
    """Whether the main thread of a process blocks SIGINT, as it does while workers are started."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return bool(int(re.search(r"SigBlk:\s*(\w+)", status)[1], 16) & 1 << (signal.SIGINT - 1))


def lives(group):
    """Whether a group of processes has any left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["workers start", "workers work"])
def test_an_interrupt_of_a_terminal_reaches_all_processes_and_is_one_line(moment, tmp_path):
    words = [
        "generate",
        "rods",
        "--samples",
        "3000",
        "--resolution",
        "16",
        "--out",
        tmp_path / "a.h5",
        "--workers",
        "2",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "data_gen.cli", *words], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    come = {
        "workers start": lambda: holds_interrupts_back(process),
        "workers work": lambda: list(tmp_path.glob("a.h5.part/*.shard")),
    }[moment]
    while process.poll() is None and not come():
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    written = process.communicate()[1].splitlines()
    assert process.returncode == 130
    assert [line for line in written if line and not line.startswith("rods:")] == [
        "data-gen: interrupted; run the same command again to continue"
    ]
    for _ in range(200):
        if not lives(process.pid):
            break
        time.sleep(0.05)
    assert not lives(process.pid)


@pytest.mark.slow
def test_a_script_that_processes_import_anew_is_told_so(tmp_path):
    script = tmp_path / "script.py"
    options = f"out={str(tmp_path / 'a.h5')!r}, samples=600, resolution=8, unlabelled=True, workers=2"
    script.write_text(f"import data_gen\n\ndata_gen.generate('rods', {options})\n")
    ended = subprocess.run(
        [sys.executable, script], env=os.environ | {"PYTHONPATH": os.getcwd()}, capture_output=True, text=True
    )
    assert ended.returncode == 1
    assert "has to call it under `if __name__ == '__main__':`" in ended.stderr.splitlines()[-1]


def test_the_file_is_the_same_for_one_two_and_four_workers(tmp_path):
    kinds = {
        "labelled": {"samples": 32, "k_points": 5, "bands": 6, "resolution": 8},
        "unlabelled": {"samples": 1600, "unlabelled": True, "resolution": 8},
    }  # four chunks each
    for kind, options in kinds.items():
        data_gen.generate("rods", out=tmp_path / f"{kind}-1.h5", workers=1, **options)  # in this process, without dask
    with cluster_of(4, tmp_path) as (address, processes):
        for workers in (4, 2):
            for process in processes[workers:]:
                process.kill()
            for kind, options in kinds.items():
                out = tmp_path / f"{kind}-{workers}.h5"
                data_gen.generate("rods", out=out, scheduler=address, **options)
                assert out.read_bytes() == (tmp_path / f"{kind}-1.h5").read_bytes()


def test_a_full_disk_is_one_line_and_loses_nothing(small_disk, tmp_path, capsys):
    words = ["generate", "rods", "--samples", 1024, "--resolution", 8, "--unlabelled", "--workers", 1]
    full, roomy = tmp_path / "disk" / "a.h5", tmp_path / "a.h5"
    assert run_data_gen(*words, "--out", full) == 2
    assert "No space left on device" in last_line(capsys)
    shards = sorted(full.with_name("a.h5.part").glob("*.shard"))
    assert [shard.name for shard in shards] == ["cells-000000000-000000512.shard"]
    assert not list(tmp_path.rglob("*.partial"))
    small_disk("size=30m")
    assert run_data_gen(*words, "--out", full) == 0
    assert run_data_gen(*words, "--out", roomy) == 0
    assert full.read_bytes() == roomy.read_bytes()


def test_no_room_for_the_file_leaves_its_shards(files_up_to, tmp_path, capsys):
    out, calm = tmp_path / "a.h5", tmp_path / "calm.h5"
    words = ["generate", "rods", "--workers", 1, *LABELLED]
    assert run_data_gen(*words, "--out", calm) == 0
    capsys.readouterr()
    with files_up_to(calm.stat().st_size - 1):  # the shard is smaller: it holds no dimensions
        assert run_data_gen(*words, "--out", out) == 2
    assert "large" in last_line(capsys).lower()
    assert list(out.with_name("a.h5.part").glob("*.shard"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5.part", "calm.h5"]
    assert run_data_gen(*words, "--out", out) == 0
    assert out.read_bytes() == calm.read_bytes()


def test_a_read_only_disk_is_one_line(small_disk, tmp_path, capsys):
    small_disk("ro")
    for name in ("a.h5", "folder/a.h5"):
        words = ["--out", tmp_path / "disk" / name, "--samples", 2, "--unlabelled"]
        assert run_data_gen("generate", "rods", *words) == 2
        assert "Read-only file system" in last_line(capsys)


def test_what_a_killed_writer_left_is_overwritten(tmp_path):
    killed = (
        "import os, sys, pathlib; from data_gen.dataset import replaced_when_complete\n"
        "with replaced_when_complete(pathlib.Path(sys.argv[1])) as partial:\n"
        "    partial.write_text('half')\n    os.kill(os.getpid(), 9)"
    )
    path = tmp_path / "a.h5"
    subprocess.run([sys.executable, "-c", killed, path], check=False)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["half"]
    with replaced_when_complete(path) as partial:
        partial.write_text("whole")
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_of_our_own_is_no_failed_cell(tmp_path, monkeypatch):
    def broken(cells, **settings):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(generation, "label_cells", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        data_gen.generate("rods", out=tmp_path / "a.h5", samples=1, resolution=8, k_points=3, workers=1)
    assert not (tmp_path / "a.h5").exists()


def not_converging():
    raise ConvergenceError("no convergence")


@pytest.mark.parametrize(
    ("fails", "message"),
    [
        (not_converging, "no convergence"),
        (lambda: np.ones(2**50), "out of memory: Unable to allocate 8.00 PiB"),
        (lambda: torch.empty(2**50), "out of memory: [enforce fail"),
    ],
)
def test_a_cell_that_cannot_be_solved_is_recorded_and_the_rest_goes_on(fails, message, tmp_path, monkeypatch, capsys):
    label_cells = generation.label_cells
    guilty = unit_cell_family("rods").draw(0, 1, 16).epsilon

    def stubborn(cells, **settings):
        if any(np.array_equal(cell, guilty) for cell in cells):
            fails()
        return label_cells(cells, **settings)

    monkeypatch.setattr(generation, "label_cells", stubborn)
    out = tmp_path / "a.h5"
    assert run_data_gen("generate", "rods", "--out", out, "--workers", 1, *LABELLED) == 1
    assert "1 of 3 cells failed" in capsys.readouterr().err
    assert run_data_gen("generate", "rods", "--out", out, "--workers", 1, *LABELLED) == 1
    assert "1 of 3 cells failed" in capsys.readouterr().err
    with data_gen.open_dataset(out) as dataset:
        assert dataset["status"].values.tolist() == [0, 1, 0]
        assert f"seed 0, index 1: {message}".encode() in dataset["error_message"].values[1]
        assert np.isnan(dataset["dos"].values[1]).all()
        assert np.isfinite(dataset["dos"].values[[0, 2]]).all()


def test_running_again_changes_nothing_and_other_settings_are_refused(tmp_path, capsys):
    out = tmp_path / "a.h5"
    words = ["generate", "rods", "--out", out, "--unlabelled", "--workers", 1]
    assert run_data_gen(*words, "--samples", 4) == 0
    before = out.read_bytes()
    assert run_data_gen(*words, "--samples", 4) == 0
    assert run_data_gen(*words, "--samples", 5) == 2
    assert "samples 4, and this run asks for 5" in capsys.readouterr().err
    assert run_data_gen("generate", "rods", "--out", out, "--workers", 1, "--samples", 4) == 2
    assert "--unlabelled', and this run asks for" in capsys.readouterr().err
    assert out.read_bytes() == before


def test_other_settings_over_an_unfinished_run_are_refused_with_both_shown(tmp_path):
    out = tmp_path / "a.h5"
    with contextlib.suppress(KeyboardInterrupt), open_shards(out, {"samples": 4, "seed": 0}) as shards:
        shards.write((0, 2), {"epsilon": np.ones(2)})
        raise KeyboardInterrupt
    with (
        pytest.raises(ValueError, match="has samples 4, and this one asks for samples 5"),
        open_shards(out, {"samples": 5, "seed": 0}),
    ):
        pass


def test_a_run_goes_on_under_another_commit_and_both_are_recorded(tmp_path):
    out = tmp_path / "a.h5"
    for commit in ("one", "two", "one"):
        with (
            contextlib.suppress(KeyboardInterrupt),
            open_shards(out, {"samples": 4, "package_commit": commit}) as shards,
        ):
            shards.write((0, 2), {"epsilon": np.ones(2)})
            raise KeyboardInterrupt
    assert shards.plan == {"samples": 4, "package_commit": "one, two"}
    assert shards.read((0, 2)) is not None


def test_two_runs_at_once_are_refused(tmp_path):
    with (
        open_shards(tmp_path / "a.h5", {"samples": 4}),
        pytest.raises(ValueError, match="another run is at work"),
        open_shards(tmp_path / "a.h5", {"samples": 4}),
    ):
        pass


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["blobb", "--samples", 3], "unknown family 'blobb'; the families are blob, gpm"),
        (["blob", "--samples", 0], "`samples` must be at least 1 (and below 2⁶³), got 0"),
        (
            ["blob", "--samples", 1, "--seed", 2**64, "--unlabelled"],
            f"`seed` must be at least 0 (and below 2⁶³), got {2**64}",
        ),
        (["blob", "--samples", "many"], "samples"),
        (["blob", "--samples", 3, "--solver", "mit"], "solver"),
        (["rods", "--samples", 3, "--resolution", 9], "`resolution` must be even for a family with symmetry, got 9"),
        (["blob", "--samples", 3, "--plane-group", "p4"], "`plane_group` and `cutoff` belong to family level-set"),
        (["level-set", "--samples", 3, "--plane-group", "p4", "--cutoff", 9], "`cutoff` must be from 1 to 8, got 9"),
        (["blob", "--samples", 3, "--bands", 0], "`bands` must be a whole number, at least 1, got 0"),
        (
            ["blob", "--samples", 3, "--k-points", 1],
            "`k_points` must be a whole number, at least 2, for",
        ),
        (["blob", "--samples", 3, "--resolution", 4, "--bands", 17], "`bands` must be at most 16 on this grid"),
        (
            ["blob", "--samples", 3, "--resolution", 4, "--bands", 16, "--polarization", "te"],
            "`bands` must be at most 15 on this grid",
        ),
        (["blob", "--samples", 3, "--smoothing", "-1"], "`smoothing` must be"),
        (["blob", "--samples", 3, "--accuracy", "0"], "`accuracy` must be a number from"),
        (["blob", "--samples", 3, "--keep-bands"], "`keep_bands` needs"),
        (
            ["blob", "--samples", 3, "--unlabelled", "--k-points", 9, "--polarization", "te"],
            "`unlabelled` cells have no use for `k_points`, `polarization`",
        ),
        (["blob", "--samples", 3, "--workers", 0], "`workers` must be at least 1, got 0"),
        (["blob"], "samples"),
    ],
)
def test_bad_input_gets_one_line_and_status_2(words, message, tmp_path, capsys):
    try:
        status = run_data_gen("generate", *words, "--out", tmp_path / "a.h5")
    except SystemExit as exit_:
        status = exit_.code
    error = capsys.readouterr().err
    assert status == 2
    assert error.count("\n") == 1
    assert message in error
    assert not list(tmp_path.iterdir())


def test_a_shard_that_is_damaged_in_between_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("data_gen.generation._fill", lambda *_: None)
    with pytest.raises(OSError, match="the shard of cells 0 to 2 was damaged meanwhile; run it again"):
        data_gen.generate("blob", out=tmp_path / "a.h5", samples=3, unlabelled=True)


def test_a_folder_is_no_file_to_write(tmp_path, capsys):
    assert run_data_gen("generate", "rods", "--out", tmp_path, "--samples", 2, "--unlabelled") == 2
    assert last_line(capsys).endswith(f"{tmp_path} is a folder; give `out` the name of a file")


def test_a_setting_may_be_a_number_of_numpys(tmp_path):
    settings = {"samples": 1, "resolution": 8, "k_points": 3, "bands": 6, "workers": 1}
    for name, smoothing in (("a.h5", np.float64(0.25)), ("b.h5", np.float32(0.25))):
        data_gen.generate("rods", out=tmp_path / name, smoothing=smoothing, **settings)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_settings_that_have_made_nothing_yet_stand_in_no_ones_way(tmp_path):
    shards = tmp_path / "a.h5.part"
    shards.mkdir()
    (shards / "plan.json").write_text('{"samples": 7}')
    assert (
        run_data_gen("generate", "rods", "--out", tmp_path / "a.h5", "--samples", 2, "--unlabelled", "--workers", 1)
        == 0
    )


def test_an_unwritable_folder_gets_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    status = run_data_gen("generate", "rods", "--out", tmp_path / "file" / "a.h5", "--samples", 2, "--unlabelled")
    assert status == 2
    assert "Not a directory" in last_line(capsys)


def test_info_and_preview(tmp_path, capsys):
    out, picture = tmp_path / "a.h5", tmp_path / "a.png"
    run_data_gen("generate", "rods", "--out", out, "--workers", 1, *LABELLED)
    capsys.readouterr()
    assert run_data_gen("info", out) == 0
    printed = capsys.readouterr().out
    assert "3 cells, 0 failed" in printed
    assert f"--out {out}" in printed
    assert run_data_gen("preview", out, "--out", picture) == 0
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert run_data_gen("preview", out, "--out", picture, "--cells", 0) == 2
    assert "`cells` must be at least 1, got 0" in capsys.readouterr().err
    assert run_data_gen("preview", out, "--out", tmp_path) == 2
    assert f"`out` must end in one of .png, .pdf, .svg, got {tmp_path}" in capsys.readouterr().err
    assert run_data_gen("preview", out, "--out", tmp_path / "none" / "a.png") == 2
    assert f"there is no folder {tmp_path / 'none'} to write a.png to" in capsys.readouterr().err
    assert run_data_gen("info", tmp_path / "none.h5") == 2
    capsys.readouterr()
    failed = tmp_path / "failed.h5"
    with xr.load_dataset(out) as cells:
        cells.assign(status=cells["status"] * 0 + 1).to_netcdf(failed, engine="h5netcdf")
    assert run_data_gen("info", failed) == 0
    assert "3 cells, 3 failed" in capsys.readouterr().out


def test_the_command_in_the_file_makes_the_same_file(tmp_path):
    first, again = tmp_path / "first.h5", tmp_path / "again.h5"
    run_data_gen("generate", "rods", "--out", first, "--workers", 1, "--seed", 3, *LABELLED)
    with data_gen.open_dataset(first) as dataset:
        words = dataset.attrs["command"].split()[1:]
    assert run_data_gen(*words, "--out", again, "--workers", 1) == 0
    assert first.read_bytes() == again.read_bytes()


def test_unlabelled_files_have_no_dos(tmp_path):
    out = tmp_path / "a.h5"
    run_data_gen("generate", "blob", "--out", out, "--samples", 2, "--unlabelled", "--workers", 1)
    with data_gen.open_dataset(out) as dataset:
        assert "dos" not in dataset
        assert dataset["epsilon"].dtype == np.float32
    assert os.path.getsize(out) < 100_000


FAKE_MPB = """#!{python}
import os, signal, sys
sys.path.insert(0, {folder!r})
from messages import read_message, write_message
write_message(sys.stdout.buffer, version="0, a fake")
read_message(sys.stdin.buffer)
os.kill(os.getpid(), signal.SIGSEGV)
"""


@pytest.fixture
def other_mpb(monkeypatch):
    """Takes an interpreter for MPB's, in place of that which is there."""

    def use(interpreter):
        monkeypatch.setenv("MEEP_PYTHON", str(interpreter))
        monkeypatch.setattr(mpb, "_worker", None)
        mpb.interpreter.cache_clear()

    yield use
    mpb.interpreter.cache_clear()


def test_an_mpb_that_crashes_costs_the_cells_that_it_crashes_on(other_mpb, tmp_path, capsys):
    fake = tmp_path / "fake"
    fake.write_text(FAKE_MPB.format(python=sys.executable, folder=str(Path(data_gen.__file__).parent)))
    fake.chmod(0o755)
    other_mpb(fake)
    out = tmp_path / "a.h5"
    assert run_data_gen("generate", "rods", "--out", out, "--solver", "mpb", "--workers", 1, *LABELLED) == 1
    assert "3 of 3 cells failed" in last_line(capsys)
    with data_gen.open_dataset(out) as dataset:
        assert dataset["status"].values.tolist() == [1, 1, 1]
        assert b"index 2: MPB's process died (exit status -11)" in dataset["error_message"].values[2]
        assert np.isfinite(dataset["epsilon"]).all()


@pytest.mark.parametrize("interpreter", ["/no/such/interpreter", shutil.which("false"), sys.executable])
def test_without_mpb_asking_for_it_is_one_line_and_writes_nothing(interpreter, other_mpb, tmp_path, capsys):
    other_mpb(interpreter)
    labelled = tmp_path / "rbme.h5"
    assert run_data_gen("generate", "rods", "--out", labelled, "--workers", 1, *LABELLED) == 0
    capsys.readouterr()
    words = ["generate", "rods", "--out", tmp_path / "mpb.h5", "--solver", "mpb", "--workers", 1, *LABELLED]
    for asked in (words, ["verify", labelled, "--samples", 1]):
        assert run_data_gen(*asked) == 2
        assert "data-gen: error: MPB cannot be had" in last_line(capsys)
    assert list(tmp_path.iterdir()) == [labelled]


def test_the_commit_is_the_packages_own_or_none(other_repository, monkeypatch):
    assert re.fullmatch("[0-9a-f]{40}(-dirty)?|None", str(dataset_module.package_commit()))
    monkeypatch.setattr(dataset_module, "__file__", str(other_repository / "dataset.py"))
    assert dataset_module.package_commit() is None
    monkeypatch.setenv("PATH", "")
    assert dataset_module.package_commit() is None
