import matplotlib
import numpy as np
import pytest

from photonic_essl.finetuning import finetune
from photonic_essl.metrics import empty_lattice
from photonic_essl.plotting import draw_cell, draw_dos, draw_predictions, draw_training, read_log

matplotlib.use("Agg")


def test_axes_are_taken_and_returned_with_units():
    figure, axes = matplotlib.pyplot.subplots(1, 2)
    assert draw_cell(np.eye(32) + 1, axes[0]) is axes[0]
    assert draw_dos(empty_lattice()[:400], empty_lattice(), axes[1]) is axes[1]
    assert axes[0].get_xlabel() == "x (a)"
    assert axes[1].get_xlabel() == "scaled frequency ωn (2πc/a)"
    assert [text.get_text() for text in axes[1].get_legend().get_texts()] == ["empty lattice", "true", "predicted"]
    matplotlib.pyplot.close(figure)


def test_best_median_and_worst_are_found(tmp_path):
    true = np.tile(empty_lattice(), (5, 1))
    predicted = true[:, :400] * np.array([1.3, 1.0, 1.1, 1.2, 1.4])[:, None]
    figure = draw_predictions(predicted, true, np.ones((5, 32, 32)))
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert [title.split(" of")[0] for title in titles] == ["best", "median", "worst"]
    assert ["0.00 %" in titles[0], "20.00 %" in titles[1], "40.00 %" in titles[2]] == [True] * 3
    figure.savefig(tmp_path / "dos.png")
    with pytest.raises(ValueError, match="must hold the same cells, got 5 and 4"):
        draw_predictions(predicted, true, np.ones((4, 32, 32)))
    matplotlib.pyplot.close(figure)


def test_training_curves_are_read_from_the_logs(labelled, tmp_path):
    finetune(labelled, tmp_path / "run", labels=8, epochs=2, progress=False)
    steps, errors = read_log(tmp_path / "run", "validation_relative_error")
    assert list(steps) == [1, 2]
    assert (errors > 0).all()
    ax = draw_training(tmp_path / "run", "validation_relative_error")
    assert ax.get_ylabel() == "validation relative error"
    matplotlib.pyplot.close(ax.figure)
    with pytest.raises(ValueError, match="has logged no 'speed', only loss, validation_relative_error"):
        read_log(tmp_path / "run", "speed")
    with pytest.raises(FileNotFoundError, match="holds no logs"):
        read_log(tmp_path, "loss")
