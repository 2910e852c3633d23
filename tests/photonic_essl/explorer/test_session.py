import json

import numpy as np
import pytest

import data_gen
from photonic_essl.explorer.session import Predictor
from photonic_essl.regression import SHIPPED, load_regressor

CELL = {"family": "gpm", "seed": 4, "index": 2, "resolution": 32, "polarization": "te"}


def text(**changes):
    return json.dumps({**CELL, **changes})


def test_without_a_model_cells_are_solved_only(session):
    drawn, solved = session.draw(text()), session.solve(text())
    assert not {"predicted", "lowest", "note"} & set(drawn)
    assert solved["off"] is None
    assert np.shape(solved["bands"]) == (10, len(solved["position"]))
    json.dumps([drawn, solved, session.choices], allow_nan=False)


def test_each_polarization_has_its_model():
    predictor = Predictor(list(SHIPPED.values()))
    assert predictor.describe()["polarizations"] == ["tm", "te"]
    epsilon = np.where(np.arange(32) < 12, 9.0, np.ones((32, 32)))
    for polarization in SHIPPED:
        found = predictor.predict(epsilon, np.eye(2), polarization)
        expected = load_regressor(polarization=polarization).predict(epsilon)
        np.testing.assert_allclose(found["predicted"], expected, atol=1e-5)
    only = Predictor([SHIPPED["tm"]]).predict(epsilon, np.eye(2), "te")
    assert only == {"note": "No prediction: the model predicts TM, the cells are for TE."}


def test_saved_is_what_was_asked_for_whatever_was_solved_last(session):
    session.solve(text())
    session.solve(text(index=3))
    assert session.save(text()) == {"out": str(session.out), "samples": 1}
    assert session.save(text(index=3))["samples"] == 2
    with data_gen.open_dataset(session.out) as saved:
        assert saved["drawn_index"].values.tolist() == [2, 3]
        assert saved["changed"].values.tolist() == [0, 0]
        np.testing.assert_allclose(saved["epsilon"][0], session.draw(text())["epsilon"], atol=1e-3)


def test_a_cell_that_does_not_fit_the_file_is_refused(session):
    session.save(text(index=3))
    with pytest.raises(ValueError, match="holds cells with polarization 'te', and this one has 'tm'"):
        session.save(text(polarization="tm"))
    with pytest.raises(ValueError, match="holds cells with lattice"):
        session.save(text(family="level-set", plane_group="p3"))
