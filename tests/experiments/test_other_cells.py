import pandas as pd
import pytest

import photonic_essl
from experiments.photonics import other_cells


@pytest.mark.slow
def test_the_table_holds_the_errors_of_its_models(tmp_path, monkeypatch):
    kind = "gpm, TE"
    monkeypatch.setattr(other_cells, "KINDS", {kind: other_cells.KINDS[kind]})
    monkeypatch.setattr(other_cells, "CELLS", {"pool": 8, "validation": 50, "test": 4})
    monkeypatch.setattr(other_cells, "LABELS", (8,))
    monkeypatch.setattr(other_cells, "SEEDS", (0, 1))
    other_cells.main(["--runs", str(tmp_path), "--results", str(tmp_path)])
    rows = pd.read_csv(tmp_path / "other_cells.csv")
    test = other_cells.split_file(tmp_path, kind, "test")
    for row in rows.itertuples():
        model = test.parent / f"model-{row.labels}-{row.seed}"
        assert photonic_essl.evaluate(data=test, model=model) == pytest.approx(row.error, rel=1e-4)
    assert list(rows["seed"]) == [0, 1]
    assert (rows["plane waves"] < rows["empty lattice"] / 5).all()
    assert f"| {kind} | 8 | {100 * rows['error'].mean():.3f} ± " in (tmp_path / "other_cells.md").read_text()
