"""Thousands of damaged files of every kind that the package reads: each must give one clear line, or its own contents.

    python -m experiments.faults.hostile_files

Takes dataset files, published-layout files and model folders, damages a few places of each (bits, blocks, ends, sizes
that claim terabytes), and reads them in a process of its own whose memory is limited. Allowed are a `ValueError` or an
`OSError`, or the very contents of the undamaged file. Not allowed: another exception, other contents, a process that
dies, or memory beyond the limit. Writes experiments/results/hostile_files.json.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import resource
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

RESULT = Path("experiments/results/hostile_files.json")
MEMORY = 4 * 2**30  # beyond what importing the package takes
BATCH = 500  # files read in one process
CLEAR = (ValueError, OSError)


def make_originals(folder: Path) -> None:
    """Write one small file of each kind."""
    from data_gen.generation import generate
    from data_gen.legacy import export_legacy
    from photonic_essl.finetuning import new_regressor, regression_recipe

    generate("blob", out=folder / "labelled.h5", samples=3, k_points=5, bands=10, workers=1)
    generate("level-set", plane_group="p4gm", out=folder / "unlabelled.h5", samples=5, unlabelled=True, workers=1)
    export_legacy(folder / "labelled.h5", out=folder / "legacy.h5")
    new_regressor("light", (32, 32), regression_recipe("supervised", "light")["head"], 0).save_pretrained(
        folder / "model"
    )


def read_dataset(path: Path) -> bytes:
    from data_gen.dataset import open_dataset

    with open_dataset(path) as dataset:
        loaded = dataset.load()
        return (
            b"".join(loaded[name].values.tobytes() for name in sorted(loaded.variables))
            + repr(sorted((name, np.asarray(value).tolist()) for name, value in loaded.attrs.items())).encode()
        )


def read_legacy(path: Path) -> bytes:
    from data_gen.legacy import import_legacy

    out = path.with_suffix(".imported")
    out.unlink(missing_ok=True)
    import_legacy(path, out=out)
    return read_dataset(out)


def read_model(path: Path) -> bytes:
    from photonic_essl.regression import load_regressor

    model = load_regressor(path)
    return b"".join(value.numpy().tobytes() for _, value in sorted(model.state_dict().items()))


KINDS: dict[str, tuple[str, Callable[[Path], bytes]]] = {
    "labelled dataset": ("labelled.h5", read_dataset),
    "unlabelled dataset": ("unlabelled.h5", read_dataset),
    "published layout": ("legacy.h5", read_legacy),
    "model, weights": ("model/model.safetensors", read_model),
    "model, settings": ("model/config.json", read_model),
}


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


def read_some(kind: str, originals: Path, folder: Path, seeds: list[int], answers: "multiprocessing.Queue") -> None:
    """Read damaged files in this process; answer each seed with what came out."""
    name, read = KINDS[kind]
    with contextlib.redirect_stdout(io.StringIO()):
        contents = read(_copy(originals, folder, name))
        limit = _address_space() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for seed in seeds:
            answers.put((seed, _outcome(read, originals, folder, name, seed, contents)))


def _outcome(read: Callable, originals: Path, folder: Path, name: str, seed: int, contents: bytes) -> str:
    path = _copy(originals, folder, name)
    original = (originals / name).read_bytes()
    (folder / name).write_bytes(damaged(original, np.random.default_rng(seed)))
    try:
        found = read(path)
    except CLEAR:
        return "refused"
    except MemoryError:
        return "beyond the memory limit"
    except Exception as error:
        return f"another exception: {type(error).__name__}"
    return "read as undamaged" if found == contents else "OTHER CONTENTS"


def _copy(originals: Path, folder: Path, name: str) -> Path:
    """Copy the file, or the folder that it lies in, and return what a reader is given."""
    top = Path(name).parts[0]
    if (originals / top).is_dir():
        shutil.copytree(originals / top, folder / top, dirs_exist_ok=True)
    else:
        shutil.copy(originals / top, folder / top)
    return folder / top


def _address_space() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmSize:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmSize")


def outcomes(kind: str, originals: Path, seeds: list[int]) -> Iterator[tuple[int, str]]:
    """Yield each seed with what came out; a process that dies is the fault of the seed it did not answer."""
    context = multiprocessing.get_context("spawn")
    waiting = list(seeds)
    while waiting:
        answers = context.SimpleQueue()
        with tempfile.TemporaryDirectory() as folder:
            batch = waiting[:BATCH]
            process = context.Process(target=read_some, args=(kind, originals, Path(folder), batch, answers))
            process.start()
            answered = 0
            while answered < len(batch) and (process.is_alive() or not answers.empty()):
                if answers.empty():
                    process.join(0.02)
                    continue
                yield answers.get()
                answered += 1
            process.join()
        if answered < len(batch):
            yield batch[answered], f"THE PROCESS DIED, status {process.exitcode}"
            answered += 1
        waiting = waiting[answered:]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=5000, help="in all")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    each = -(-arguments.files // len(KINDS))
    table, bad = {}, []
    with tempfile.TemporaryDirectory() as folder:
        originals = Path(folder)
        make_originals(originals)
        for number, kind in enumerate(KINDS):
            seeds = [arguments.seed + number * 10**6 + index for index in range(each)]
            found = dict(outcomes(kind, originals, seeds))
            table[kind] = dict(Counter(found.values()))
            bad += [(kind, seed, what) for seed, what in found.items() if what not in ("refused", "read as undamaged")]
            print(kind, table[kind], flush=True)
    for kind, seed, what in bad[:20]:
        print(f"{kind}, seed {seed}: {what}")
    RESULT.write_text(
        json.dumps({"files": each * len(KINDS), "seed": arguments.seed, "outcomes": table}, indent=1) + "\n"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
