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
# # Predict and plot
#
# With the model and the files that `pretrain_on_own_cells.py` leaves; any other model and labelled file will do.

# %%
from pathlib import Path

import matplotlib.pyplot as plt

import data_gen
import photonic_essl
from photonic_essl.data import load_cells
from photonic_essl.encoders import representations
from photonic_essl.metrics import relative_errors
from photonic_essl.plotting import (
    draw_cell,
    draw_dos,
    draw_error_distribution,
    draw_predictions,
    draw_representation,
)

# %% tags=["parameters"]
CELLS = 100

# %%
FOLDER = Path("runs/notebooks")

# %% [markdown]
# ## Predict
#
# `predict` takes one cell or many, as numpy, torch or xarray, and returns D/n over the scaled frequency below 0.96.

# %%
model = photonic_essl.load_regressor(FOLDER / "model")
cells = data_gen.open_dataset(FOLDER / "test.h5").isel(sample=slice(CELLS))
predicted = model.predict(cells["epsilon"])
errors = relative_errors(predicted, cells["dos"])
print(f"relative error: mean {100 * errors.mean():.2f} %, worst {100 * errors.max():.2f} %")

# %% [markdown]
# ## Look at them
#
# The mean hides what physicists look for: which cells are wrong, and where in the spectrum.

# %%
figure = draw_predictions(predicted, cells["dos"], cells["epsilon"])
figure.savefig(FOLDER / "predictions.png", dpi=120)

# %%
guess = photonic_essl.metrics.empty_lattice()[:400] + 0 * predicted.values
figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.4), layout="constrained")
draw_error_distribution({"model": errors, "empty lattice": relative_errors(guess, cells["dos"])}, left)
features = representations(model.encoder, load_cells(FOLDER / "test.h5").epsilon[:CELLS].split(512))
contrast = (cells["epsilon"].max(("x", "y")) / cells["epsilon"].min(("x", "y"))).values
draw_representation(features, contrast, "contrast (largest ÷ smallest ε)", right)
figure.savefig(FOLDER / "errors.png", dpi=120)

# %% [markdown]
# ## A cell of your own, and what solving it says

# %%
epsilon = cells["epsilon"][int(errors.argmax())].values
solved = data_gen.label(epsilon, accuracy=2e-3)
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), width_ratios=(1, 1.9), layout="constrained")
draw_cell(epsilon, left, periods=3)
draw_dos(model.predict(epsilon), solved["dos"], right)
figure.savefig(FOLDER / "one_cell.png", dpi=120)

# %% [markdown]
# ## All of it on one page
#
# `photonic-essl report --run runs/notebooks --out runs/notebooks/report.html`: settings, cost, curves, errors, and a
# gallery of the test cells to sort and filter in the browser.

# %%
photonic_essl.report(FOLDER, out=FOLDER / "report.html")
