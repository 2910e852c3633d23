"""Thousands of damaged and hostile files of every kind that is read: each gives one clear line, or its own contents.

    python -m experiments.faults.hostile_files --files 5400

Takes one small file of each kind and damages a few places of it (bits, blocks, ends, sizes of terabytes), or makes its
header claim terabytes in its own format, or puts a pickle in its place that would write a file when it is loaded; one
in twenty stays whole, and has to be read. All are read in processes of their own whose memory is limited. Allowed are a
`ValueError` or an `OSError`, or the very contents of the whole file. Not allowed: another exception, other contents, a
traceback on stderr, a process that dies or hangs, memory beyond the limit, or the pickle's file. Two kinds have no
checksum; what of them passes every check and yet differs is counted by itself. Writes
experiments/results/hostile_files.json, anew after every 200 files.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import pickle
import re
import resource
import shutil
import signal
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

RESULT = Path("experiments/results/hostile_files.json")
MEMORY = 4 * 2**30  # beyond what importing the package takes
BATCH = 3000  # files read in one process, which takes a while to start
KEPT = 200  # files after which the table is written
SECONDS = 300  # for one file, on a machine busy with other work
CLEAR = (ValueError, OSError)
REFUSED, UNDAMAGED, UNTOLD = "refused", "read as undamaged", "other contents that no check of the format can tell"
HOSTILE = 0.1  # part of the files that claim terabytes, and part that are pickles
WHOLE = 0.05  # part that are left as they are, and have to be read


def read_dataset(path: Path) -> bytes:
    from data_gen.dataset import open_dataset

    with open_dataset(path) as dataset:
        loaded = dataset.load()
        said = [loaded.attrs, *(loaded[name].attrs for name in sorted(loaded.variables))]
        return (
            b"".join(loaded[name].values.tobytes() for name in sorted(loaded.variables))
            + repr(
                [sorted((name, np.asarray(value).tolist()) for name, value in each.items()) for each in said]
            ).encode()
        )


def read_legacy(path: Path) -> bytes:
    from data_gen.legacy import import_legacy

    out = path.with_suffix(".imported")
    out.unlink(missing_ok=True)
    import_legacy(path, out=out)
    return read_dataset(out)


def read_model(path: Path) -> bytes:
    from photonic_essl.regression import load_regressor

    return _held(load_regressor(path).state_dict())


def read_encoder(path: Path) -> bytes:
    from photonic_essl.published import import_encoder

    out = path.with_suffix(".imported")
    shutil.rmtree(out, ignore_errors=True)
    return _held(import_encoder(path, out=out).state_dict())


def read_checkpoint(path: Path) -> bytes:
    from photonic_essl.torch_files import read_torch_file

    return _held(read_torch_file(path / "checkpoints" / "last.ckpt"))


def read_run(path: Path) -> bytes:
    from photonic_essl.records import read_records

    return repr(read_records(path).values()).encode()


def read_cluster(path: Path) -> bytes:
    from experiments.cluster.slurm import read_settings

    return repr(read_settings(path)).encode()


def _held(held: Any) -> bytes:
    """Return tensors and containers of tensors as bytes."""
    import torch

    if isinstance(held, torch.Tensor):
        return repr((held.dtype, held.shape)).encode() + held.numpy().tobytes()
    if isinstance(held, dict):
        return b"".join(repr(key).encode() + _held(value) for key, value in held.items())
    if isinstance(held, (list, tuple)):
        return b"".join(_held(value) for value in held)
    return repr(held).encode()


@dataclass(frozen=True)
class Kind:
    """A file that is read.

    Attributes:
        file: where it lies; what is read is this, or the folder that it lies in.
        read: reads it, as the package does, and returns its contents.
        checksum: whether the format has one.
    """

    file: str
    read: Callable[[Path], bytes]
    checksum: bool = True


KINDS = {
    "labelled dataset": Kind("labelled.h5", read_dataset),
    "unlabelled dataset": Kind("unlabelled.h5", read_dataset),
    "published layout": Kind("legacy.h5", read_legacy, checksum=False),
    "model, weights": Kind("model/model.safetensors", read_model),
    "model, settings": Kind("model/config.json", read_model),
    "published encoder": Kind("encoder.pt", read_encoder),
    "run, record": Kind("run/run.json", read_run),
    "run, checkpoint": Kind("run/checkpoints/last.ckpt", read_checkpoint),
    "settings of a cluster, YAML": Kind("slurm.yaml", read_cluster, checksum=False),
}


def make_originals(folder: Path) -> None:
    """Write one small file of each kind."""
    import torch

    from data_gen.generation import generate
    from data_gen.legacy import export_legacy
    from experiments.benchmarks.pretraining import naive_encoder
    from photonic_essl.finetuning import new_regressor, regression_recipe
    from photonic_essl.pretraining import pretrain

    generate("blob", out=folder / "labelled.h5", samples=3, k_points=5, bands=10, workers=1)
    generate("level-set", plane_group="p4gm", out=folder / "unlabelled.h5", samples=5, unlabelled=True, workers=1)
    export_legacy(folder / "labelled.h5", out=folder / "legacy.h5")
    regressor = new_regressor("light", (32, 32), 0, head=regression_recipe("supervised", "light")["head"])
    regressor.save_pretrained(folder / "model")
    options = {"family": "blob", "epochs": 1, "batch_size": 4, "device": "cpu", "progress": False}
    pretrain(folder / "unlabelled.h5", folder / "run", **options)
    state = {}
    for name, value in naive_encoder().state_dict().items():
        number, rest = name.split(".", 1)
        part = f"enc_block2d.{number}" if int(number) < 12 else f"fcpart.{int(number) - 13}"
        state[f"enc.{part}.{rest}"] = value
    torch.save({"model_state_dict": state, "ptepoch": 200}, folder / "encoder.pt")
    shutil.copy(Path(__file__).parents[1] / "cluster" / "slurm.yaml", folder)


def hostile(file: Path, generator: np.random.Generator, witness: Path) -> bool:
    """Damage a file, or put something in its place; return whether it was left whole."""
    way = generator.random()
    if way < HOSTILE:
        file.write_bytes(disguised_pickle(generator, witness))
    elif way < 2 * HOSTILE:
        claim_terabytes(file, generator)
    elif way < 1 - WHOLE:
        file.write_bytes(damaged(file.read_bytes(), generator))
    return way >= 1 - WHOLE


def damaged(content: bytes, generator: np.random.Generator) -> bytes:
    """Return the content with one to four places damaged."""
    body = bytearray(content)
    for _ in range(generator.integers(1, 5)):
        at = int(generator.integers(0, len(body)))
        # Headers are small and at the front: as likely to be hit as all the rest.
        at = at if generator.random() < 0.5 else at % min(len(body), 4096)
        length = int(generator.integers(1, 64))
        way = generator.integers(0, 6)
        if way == 0:
            body[at] ^= 1 << int(generator.integers(0, 8))
        elif way == 1:
            body[at : at + length] = generator.bytes(len(body[at : at + length]))
        elif way == 2:
            body[at : at + length] = bytes(len(body[at : at + length]))
        elif way == 3:
            del body[max(1, at) :]
        elif way == 4:  # a size of terabytes
            size = (2**40, 2**63 - 1, 2**64 - 1)[generator.integers(3)].to_bytes(8, "little")
            body[at : at + 8] = size[: len(body[at : at + 8])]
        else:
            body[at:at] = generator.bytes(length)
    return bytes(body)


class _Code:
    """What would write a file when it is unpickled."""

    def __init__(self, witness: Path):
        self.witness = str(witness)

    def __reduce__(self):
        return open, (self.witness, "w")


def disguised_pickle(generator: np.random.Generator, witness: Path) -> bytes:
    """Return code that would write the witness, in one of the formats that can hold any."""
    import torch

    held, buffer = {"model_state_dict": _Code(witness), "state_dict": _Code(witness)}, io.BytesIO()
    way = int(generator.integers(0, 11))
    if way < 6:
        return pickle.dumps(held, protocol=way)
    if way < 8:
        torch.save(held, buffer, _use_new_zipfile_serialization=way == 6)
    elif way == 8:
        np.save(buffer, np.array(_Code(witness), dtype=object), allow_pickle=True)
    elif way == 9:
        np.savez(buffer, epsilon=np.array(_Code(witness), dtype=object))
    else:
        return f'!!python/object/apply:builtins.open ["{witness}", "w"]\n'.encode()
    return buffer.getvalue()


def claim_terabytes(file: Path, generator: np.random.Generator) -> None:
    """Let something in the file claim 2⁴⁰ times its size, in the file's own format."""
    if file.suffix == ".h5":
        _claim_hdf5(file, generator)
    elif file.suffix == ".safetensors":
        file.write_bytes(_claim_safetensors(file.read_bytes(), generator))
    elif file.suffix in (".pt", ".ckpt"):
        _claim_torch(file, generator)
    else:
        text = file.read_text()
        numbers = list(re.finditer(r"\d+", text))
        chosen = numbers[generator.integers(len(numbers))]
        file.write_text(f"{text[: chosen.start()]}{int(chosen[0]) + 1}{'0' * 12}{text[chosen.end() :]}")


def _claim_hdf5(file: Path, generator: np.random.Generator) -> None:
    import h5py

    with h5py.File(file, "r+") as content:
        names: list[str] = []
        content.visititems(lambda name, entry: names.append(name) if isinstance(entry, h5py.Dataset) else None)
        name = names[generator.integers(len(names))]
        shape, dtype, attributes = content[name].shape, content[name].dtype, dict(content[name].attrs)
        del content[name]
        claimed = (*(shape or (1,))[:-1], (shape or (1,))[-1] * 2**40)
        options = {"chunks": tuple(min(size, 256) for size in claimed)} if generator.random() < 0.5 else {}
        made = content.create_dataset(name, claimed, dtype, **options)
        for key, value in attributes.items():
            if not key.startswith(("DIMENSION", "REFERENCE", "_Net", "CLASS", "NAME")):
                made.attrs[key] = value


def _claim_safetensors(content: bytes, generator: np.random.Generator) -> bytes:
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    names = [name for name in header if name != "__metadata__"]
    entry = header[names[generator.integers(len(names))]]
    entry["shape"] = [*entry["shape"], 2**40]
    if generator.random() < 0.5:
        start, stop = entry["data_offsets"]
        entry["data_offsets"] = [start, start + (stop - start) * 2**40]
    written = json.dumps(header).encode()
    return len(written).to_bytes(8, "little") + written + content[8 + length :]


def _claim_torch(file: Path, generator: np.random.Generator) -> None:
    """Save a tensor that has one value and claims 2⁴⁰ of them, or compress zeros as torch never does."""
    import zipfile

    import torch

    held = torch.load(file, weights_only=True)
    state = held["model_state_dict" if "model_state_dict" in held else "state_dict"]
    name = list(state)[generator.integers(len(state))]
    if generator.random() < 0.5:
        state[name] = torch.zeros(1).expand(2**40)
        torch.save(held, file)
        return
    torch.save(held, file)
    with zipfile.ZipFile(file) as archive:
        records = {record.filename: archive.read(record) for record in archive.infolist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for record, body in records.items():
            archive.writestr(record, bytes(2**26) if record.endswith("/data/0") else body)


def read_some(jobs: Sequence[tuple[str, int]], originals: Path, answers: SimpleQueue) -> None:
    """Read hostile files in this process; answer each with what came out, and at the end with the memory taken."""
    import dask

    dask.config.set(scheduler="synchronous")
    with tempfile.TemporaryDirectory() as home, contextlib.redirect_stdout(io.StringIO()):
        folder = Path(home)
        said = _Stderr(folder / "stderr")
        kinds = dict.fromkeys(kind for kind, _ in jobs)
        contents = {kind: KINDS[kind].read(_copy(originals, folder, KINDS[kind].file)) for kind in kinds}
        limit = _address_space() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        before = _most_memory()
        for kind, seed in jobs:
            signal.alarm(SECONDS)  # kills the process, wherever it hangs
            said.forget()
            found = outcome_of(KINDS[kind], originals, folder, seed, contents[kind])
            answers.put((kind, seed, "A TRACEBACK ON STDERR" if b"Traceback" in said.so_far() else found))
        answers.put(_most_memory() - before)


class _Stderr:
    """Standard error of this process, C libraries' included, in a file."""

    def __init__(self, path: Path):
        self.file = path.open("w+b")
        os.dup2(self.file.fileno(), 2)

    def forget(self) -> None:
        os.ftruncate(self.file.fileno(), 0)
        os.lseek(self.file.fileno(), 0, os.SEEK_SET)

    def so_far(self) -> bytes:
        return Path(self.file.name).read_bytes()


def outcome_of(kind: Kind, originals: Path, folder: Path, seed: int, contents: bytes) -> str:
    """Read the hostile file of a seed, and return what came out."""
    path, witness = _copy(originals, folder, kind.file), folder / "witness"
    whole = hostile(folder / kind.file, np.random.default_rng(seed), witness)
    try:
        found = kind.read(path)
    except CLEAR as error:
        words = str(error).strip()
        outcome = REFUSED if words and "\n" not in words else f"REFUSED IN NO LINE OR MORE: {type(error).__name__}"
        if whole:
            return f"A WHOLE FILE WAS REFUSED: {error}"
    except MemoryError:
        outcome = "BEYOND THE MEMORY LIMIT"
    except Exception as error:
        outcome = f"ANOTHER EXCEPTION: {type(error).__name__}"
    else:
        outcome = UNDAMAGED if found == contents else "OTHER CONTENTS" if kind.checksum else UNTOLD
    if witness.exists():
        witness.unlink()
        return "CODE WAS RUN"
    return outcome


def _copy(originals: Path, folder: Path, name: str) -> Path:
    """Copy the file, or the folder that it lies in, and return what a reader is given."""
    top = Path(name).parts[0]
    if (originals / top).is_dir():
        shutil.copytree(originals / top, folder / top, dirs_exist_ok=True)
    else:
        shutil.copy(originals / top, folder / top)
    return folder / top


def _address_space() -> int:
    return _from_status("VmSize")


def _most_memory() -> int:
    return _from_status("VmHWM")


def _from_status(name: str) -> int:
    """Return an amount of memory of this process, in bytes."""
    found = re.search(rf"^{name}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"/proc/self/status has no {name}")
    return int(found[1]) * 1024


def outcomes(jobs: Sequence[tuple[str, int]], originals: Path) -> Iterator[tuple[str, int, str] | int]:
    """Yield each kind and seed with what came out, and for each process the memory that it took.

    A process that dies is the fault of the file that it did not answer.
    """
    context = multiprocessing.get_context("spawn")
    waiting = list(jobs)
    while waiting:
        answers = context.SimpleQueue()
        batch = waiting[:BATCH]
        process = context.Process(target=read_some, args=(batch, originals, answers))
        process.start()
        answered = 0
        while answered <= len(batch) and (process.is_alive() or not answers.empty()):
            if answers.empty():
                process.join(0.02)
                continue
            yield answers.get()
            answered += 1
        process.join()
        if answered < len(batch):
            yield *batch[answered], f"THE PROCESS DIED, status {process.exitcode}"
            answered += 1
        waiting = waiting[min(answered, len(batch)) :]


def planned(files: int, seed: int) -> list[tuple[str, int]]:
    """Return kinds in turn, each file with a seed of its own."""
    each = -(-files // len(KINDS))
    return [(kind, seed + number * 10**6 + index) for index in range(each) for number, kind in enumerate(KINDS)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=5400, help="in all")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    jobs = planned(arguments.files, arguments.seed)
    table: dict[str, Counter] = defaultdict(Counter)
    bad, memory = [], 0
    with tempfile.TemporaryDirectory() as folder:
        make_originals(Path(folder))
        for found in tqdm(outcomes(jobs, Path(folder)), total=len(jobs), unit="file"):
            if isinstance(found, int):
                memory = max(memory, found)
                _keep(arguments, table, bad, memory)
                continue
            kind, seed, what = found
            table[kind][what] += 1
            if sum(found.total() for found in table.values()) % KEPT == 0:
                _keep(arguments, table, bad, memory)
            if what not in (REFUSED, UNDAMAGED, UNTOLD):
                bad.append(f"{kind}, seed {seed}: {what}")
                tqdm.write(bad[-1])
        _keep(arguments, table, bad, memory)
    for kind, found in table.items():
        print(f"{kind}: {', '.join(f'{count} {what}' for what, count in found.most_common())}")
    print(
        f"{sum(found.total() for found in table.values())} files, {len(bad)} faults, {memory / 2**20:.0f} MiB at most"
    )
    return 1 if bad else 0


def _keep(arguments: argparse.Namespace, table: dict[str, Counter], bad: list[str], memory: int) -> None:
    result = {
        "command": f"python -m experiments.faults.hostile_files --files {arguments.files} --seed {arguments.seed}",
        "files": sum(found.total() for found in table.values()),
        "memory_mib": round(memory / 2**20),
        "outcomes": {kind: dict(found.most_common()) for kind, found in table.items()},
        "faults": bad,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
