# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Pre-train and fine-tune on your own cells
#
# All that is needed is ε on a grid. Here "your own" are two rods, one of them anywhere; put in what you have.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from tqdm import trange

import data_gen
import photonic_essl
from photonic_essl.plotting import draw_training

# %% tags=["parameters"]
CELLS = 2048

# %%
FOLDER = Path("runs/notebooks")
FOLDER.mkdir(parents=True, exist_ok=True)
LABELS = max(CELLS // 16, 12)  # labelled cells: most to train on, some to choose the epoch by, some to test with

# %% [markdown]
# ## Your cells
#
# Sampled nine times finer than the 32 × 32 pixels that a network sees: a pixel holds the mean.

# %%
along = (np.arange(288) + 0.5) / 288 - 0.5


def own_cell(random):
    """Return ε `(288, 288)` of two rods, one in the middle and one anywhere."""
    radii, (rods, matrix), place = random.uniform(0.05, 0.3, 2), random.uniform(1, 12, 2), random.uniform(-0.5, 0.5, 2)
    away = [np.abs((along - centre + 0.5) % 1 - 0.5) for centre in (0, *place)]
    first, second = (np.hypot(x[:, None], y) for x, y in ((away[0], away[0]), away[1:]))
    return np.where((first < radii[0]) | (second < radii[1]), rods, matrix)


def pixels(epsilon):
    """Return the mean of ε over each pixel, `(32, 32)`."""
    return epsilon.reshape(32, 9, 32, 9).mean((1, 3))


# %% [markdown]
# ## Files
#
# `data_gen.import_cells` makes a dataset file of any array of ε, with labels unless it is told otherwise: on all cores
# as the command `data-gen import-cells`, and from where it was if it is stopped. (Labels of your own solver go into
# such a file with xarray; see the guide.)


# %%
def save(name, epsilon, **settings):
    """Write a dataset file of cells `(sample, x, y)`."""
    np.save(FOLDER / f"{name}.npy", epsilon)
    data_gen.import_cells(FOLDER / f"{name}.npy", out=FOLDER / f"{name}.h5", name="two rods", workers=1, **settings)


def drawn(seed, first, last):
    """Return cells of a seed."""
    return [own_cell(np.random.default_rng((seed, i))) for i in trange(first, last)]


test = LABELS // 4
save("unlabelled", [pixels(cell) for cell in drawn(0, 0, CELLS)], unlabelled=True)
save("test", drawn(1, 0, test), resolution=32, accuracy=2e-3)
save("labelled", drawn(1, test, LABELS), resolution=32, accuracy=2e-3)

# %% [markdown]
# ## Which symmetries
#
# The two groups are the physicist's choice. The density of states does not change under any of them. *Invariance*:
# mirrors and quarter turns, of which the representation should keep nothing. *Equivariance*: translations by half a
# cell; the encoder has to tell which one was applied, and so to know where things are. It can, as one rod is in the
# middle.

# %%
photonic_essl.pretrain(
    FOLDER / "unlabelled.h5",
    FOLDER / "encoder",
    recipe="e-simclr",
    invariance="mirrors * quarter-turns",
    equivariance="translations/2",
    batch_size=min(128, CELLS // 2),
)

# %%
photonic_essl.finetune(
    FOLDER / "labelled.h5",
    FOLDER / "model",
    pretrained=FOLDER / "encoder",
    recipe="supervised",
    labels=LABELS // 2,
    invariance="mirrors * quarter-turns",
    epochs=300 if CELLS >= 256 else 10,
)

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
draw_training(FOLDER / "encoder", "loss", left).set_title("pre-training")
draw_training(FOLDER / "model", "validation_relative_error", right).set_title("fine-tuning")
figure.savefig(FOLDER / "training.png", dpi=120)

# %%
error = photonic_essl.evaluate(FOLDER / "test.h5", FOLDER / "model")
