"""The command `photonic-essl explore`."""

import tempfile
from pathlib import Path

import torch

from data_gen.dataset import open_dataset
from photonic_essl.explorer.server import PageServer
from photonic_essl.explorer.session import Session
from photonic_essl.regression import SHIPPED


def explore(*, model: Path | None = None, port: int = 8765, out: Path = Path("explored.h5")) -> None:
    """Choose or paint unit cells on a local page in the browser, and see their density of states predicted and solved.

    The page shows the prediction of a model at once, the fast solver's label, band diagram and gaps a moment later,
    and MPB's at the press of a button. It saves cells with their labels and bands to a dataset file, on which
    `photonic-essl predict` and `evaluate` run. Only this machine can reach it. Ctrl-C ends it.

    Args:
        model: folder of a regressor; those that come with the package where not given.
        port: where the page is, on 127.0.0.1; 0 for any that is free.
        out: dataset file to save to; a file that is there gets the cells at its end.

    Raises:
        FileNotFoundError: if there is no such model.
        ValueError: if the model is none, the port is in use, or the file cannot be written or is another's.
    """
    torch.set_num_threads(1)  # one cell is too little work to share, and the solver needs the other cores
    check_writable(Path(out))
    models = list(SHIPPED.values()) if model is None else [model]
    with PageServer(port) as server, Session(models, Path(out)) as session:
        server.session = session
        print(f"The explorer is at {server.url} and saves to {out}; Ctrl-C ends it.", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("\nThe explorer has ended.")


def check_writable(out: Path) -> None:
    """Raise `ValueError` if a dataset file cannot be written, or is something else."""
    if out.exists():
        open_dataset(out).close() if out.is_file() else _refuse(out, "it is no file")
    try:
        tempfile.TemporaryFile(dir=out.parent).close()
    except OSError as error:
        _refuse(out, str(error.strerror))


def _refuse(out: Path, reason: str) -> None:
    raise ValueError(f"{out} cannot be written: {reason}.")
