import matplotlib
import numpy as np
import pytest

from photonic_essl.finetuning import finetune
from photonic_essl.metrics import empty_lattice
from photonic_essl.plotting import (
    draw_bands,
    draw_cell,
    draw_dos,
    draw_error_distribution,
    draw_learning_curve,
    draw_predictions,
    draw_representation,
    draw_training,
    draw_turned_dos,
    read_log,
)

matplotlib.use("Agg")


@pytest.fixture
def ax():
    figure, ax = matplotlib.pyplot.subplots()
    yield ax
    matplotlib.pyplot.close(figure)


def test_axes_are_taken_and_returned_with_units():
    figure, axes = matplotlib.pyplot.subplots(1, 2)
    assert draw_cell(np.eye(32) + 1, axes[0]) is axes[0]
    assert draw_dos(empty_lattice()[:400], empty_lattice(), axes[1]) is axes[1]
    assert axes[0].get_xlabel() == "x (a)"
    assert axes[1].get_xlabel() == "scaled frequency ωn (2πc/a)"
    assert [text.get_text() for text in axes[1].get_legend().get_texts()] == ["empty lattice", "true", "predicted"]
    matplotlib.pyplot.close(figure)


def test_a_prediction_is_drawn_with_its_interval_where_the_truth_is_not_known(ax):
    assert draw_dos(np.ones(400), ax=ax, interval=(np.full(400, 0.9), np.full(400, 1.1))) is ax
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["empty lattice", "interval", "predicted"]


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


def test_cells_and_their_empty_lattice_have_the_shape_of_the_lattice():
    lattice, true = [1.0, 0.0, -0.5, 0.75**0.5], np.tile(empty_lattice(), (3, 1))
    figure = draw_predictions(true[:, :400], true, np.ones((3, 32, 32)), lattice=lattice)
    cell, dos = figure.axes[:2]
    assert cell.get_xlim() == pytest.approx((-0.75, 0.75))
    np.testing.assert_allclose(dos.lines[0].get_ydata(), empty_lattice(area=0.75**0.5)[:400])
    matplotlib.pyplot.close(figure)


def test_training_curves_are_read_from_the_logs(labelled, tmp_path):
    finetune(labelled, tmp_path / "run", labels=8, epochs=2, progress=False)
    steps, errors = read_log(tmp_path / "run", "validation_relative_error")
    assert list(steps) == [0, 1, 2]
    assert (errors > 0).all()
    ax = draw_training(tmp_path / "run", "validation_relative_error")
    assert ax.get_ylabel() == "validation relative error"
    matplotlib.pyplot.close(ax.figure)
    with pytest.raises(ValueError, match="has logged no 'speed', only loss, validation_relative_error"):
        read_log(tmp_path / "run", "speed")
    with pytest.raises(FileNotFoundError, match="holds no logs"):
        read_log(tmp_path, "loss")


@pytest.mark.parametrize("periods", [1, 2, 3])
def test_periods_of_a_crystal_leave_the_cell_in_the_middle(ax, periods):
    lattice = np.array([[1.0, 0.0], [-0.5, np.sqrt(3) / 2]])
    epsilon = 1.0 + np.arange(8 * 12).reshape(8, 12)
    draw_cell(epsilon, ax, lattice=lattice, periods=periods)
    (mesh,) = ax.collections
    corners, values = mesh.get_coordinates(), mesh.get_array().reshape(8 * periods, 12 * periods)
    middle = np.array([4, 6]) * (periods - 1)
    assert (values[middle[0] :, middle[1] :][:8, :12] == epsilon).all()
    assert (values == np.roll(values, (8, 12), (0, 1))).all()
    np.testing.assert_allclose(corners[tuple(middle)], (-0.5, -0.5) @ lattice, atol=1e-12)
    np.testing.assert_allclose(corners[-1, -1] - corners[0, 0], (periods, periods) @ lattice, atol=1e-12)


def test_bad_cells_and_periods_are_refused(ax):
    with pytest.raises(ValueError, match=r"`periods` be at least 1, got \(8, 8\) and 0"):
        draw_cell(np.ones((8, 8)), ax, periods=0)


def test_band_diagram_shades_gaps_and_says_how_large_they_are(ax):
    position = np.linspace(0, 1, 11)
    tm = np.stack([0.3 * position, 0.5 + 0.1 * position], axis=1)
    te = np.stack([0.45 * position, 0.4525 + 0.1 * position], axis=1)  # a gap of 0.6 %: not shown
    draw_bands(position, [(0.0, "Γ"), (0.6, "X"), (1.0, "M")], tm=tm, te=te, ax=ax)
    assert [text.get_text() for text in ax.texts] == ["TM gap 50.0 %"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["Γ", "X", "M"]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["TM", "TE"]
    points = [line for line in ax.lines if line.get_marker() == "o"]
    assert {line.get_markerfacecolor() for line in points} == {"#0072B2", "none"}
    with pytest.raises(ValueError, match=r"11 wavevectors of the path are needed, got `te` of shape \(3, 2\)"):
        draw_bands(position, [], te=te[:3], ax=ax)
    with pytest.raises(ValueError, match="got none"):
        draw_bands(position, [], ax=ax)


def test_labels_of_overlapping_gaps_do_not_overlap(ax):
    position = np.linspace(0, 1, 5)
    flat = np.ones((5, 1))
    tm, te = flat * [0.3, 0.5, 0.6], flat * [0.301, 0.501, 0.6]
    draw_bands(position, [], tm=tm, te=te, ax=ax)
    boxes = [text.get_window_extent() for text in ax.texts]
    assert len(boxes) == 4
    assert not any(first.overlaps(second) for i, first in enumerate(boxes) for second in boxes[:i])


def test_turned_dos_is_on_unscaled_frequencies_and_keeps_the_states(ax):
    frequency = np.linspace(0, 1.2, 500)
    draw_turned_dos(frequency, empty_lattice(frequency), 4.0, ax, polarization="te")
    density, unscaled = ax.lines[0].get_data()
    assert unscaled[-1] == pytest.approx(0.6)
    assert np.trapezoid(density, unscaled) == pytest.approx(np.pi * 1.2**2)  # as many as over ωn
    draw_turned_dos(frequency, 2 * empty_lattice(frequency), 4.0, ax)
    assert ax.get_xlim()[1] > 2 * density.max()


def test_an_interval_is_shaded_between_its_bounds(ax):
    predicted = empty_lattice()[:400]
    draw_dos(predicted, predicted, ax, interval=(predicted - 0.5, predicted + 1))
    extent = ax.collections[0].get_paths()[0].get_extents()
    assert (extent.y0, extent.y1) == pytest.approx((-0.5, predicted[-1] + 1))


def test_error_distribution_ends_at_all_cells(ax):
    draw_error_distribution({"model": [0.3, 0.1, 0.2], "other": [0.5, 0.4, 0.1]}, ax)
    assert ax.lines[0].get_xdata() == pytest.approx([10, 20, 30])
    assert ax.lines[0].get_ydata()[-1] == 100


def test_learning_curves_share_their_ticks(ax):
    draw_learning_curve([50, 100], [0.1, 0.05], ax, deviation=[0.01, np.nan], label="a")
    draw_learning_curve([100, 400], [0.1, 0.05], ax, label="b")
    assert list(ax.get_xticks()) == [50, 100, 400]
    assert ax.lines[0].get_ydata() == pytest.approx([10, 5])


def test_representation_is_drawn_on_its_principal_components(ax):
    random = np.random.default_rng(0)
    latent = random.normal(size=(50, 2)) * [3, 1]
    rotation = np.linalg.qr(random.normal(size=(8, 8)))[0]
    property = np.where(np.arange(50) < 5, np.nan, latent[:, 0])
    draw_representation(np.pad(latent, ((0, 0), (0, 6))) @ rotation + 7, property, "contrast", ax)
    shown = np.concatenate([part.get_offsets() for part in ax.collections])
    correlation = np.corrcoef(shown[:, 0], latent[:, 0])[0, 1]
    assert abs(correlation) > 0.99
    assert [len(part.get_offsets()) for part in ax.collections] == [5, 45]
    with pytest.raises(ValueError, match=r"must fit, got \(50, 2\) and \(3,\)"):
        draw_representation(latent, np.ones(3), "contrast", ax)
