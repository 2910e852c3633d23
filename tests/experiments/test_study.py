from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from data_gen.generation import Plan
from data_gen.labels import LabelSettings
from experiments.photonics import baselines, comparison, datasets, figures, study, table, trials
from experiments.photonics.splits import LeakError, check_disjoint
from experiments.photonics.trials import Trial, run_trial
from photonic_essl import evaluate
from photonic_essl.data import LabelledCells, load_cells
from photonic_essl.encoders import Encoder
from photonic_essl.plotting import read_log

SCALE = study.Scale(
    name="smoke",
    data="smoke",
    datasets=["blob"],
    recipes=["supervised", "e-simclr", "few-labels-surrogate"],
    encoder="light",
    labels=[3, 6],
    pretraining_seeds=[0],
    label_seeds=[0],
    pretraining_epochs=1,
    finetuning_epochs=2,
)
PLAN = datasets.DatasetPlan(
    name="blob",
    family="blob",
    invariance="mirrors * quarter-turns",
    equivariance="translations/2",
    seeds={"unlabelled": 0, "pool": 1, "validation": 2, "test": 3},
    samples={"unlabelled": 128, "pool": 8, "validation": 4, "test": 4},
    labels={
        "converged": {"k_points": 9, "bands": 10},
        "published": {"k_points": 5, "bands": 10},
        "rough": {"k_points": 3},
    },
    labelled={
        "unlabelled": ["rough"],
        "pool": ["converged", "published"],
        "validation": ["converged"],
        "test": ["converged", "published"],
    },
    verified=0,
)
WANTED = study.trials(SCALE, {"blob": PLAN}, [*SCALE.recipes, "ridge", "empty-lattice"])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / SCALE.name
    folder.mkdir()
    datasets.make(PLAN, folder / "data", folder / "verification.txt")
    return folder


@pytest.fixture(scope="module")
def finished(runs):
    """The study, run once."""
    done = study.Study(runs / "results" / "table.csv", runs, runs / "data", {"blob": PLAN})
    study.run_study(done, WANTED)
    return done


def test_every_trial_is_a_row_with_its_errors_and_its_record(finished):
    rows = pd.read_csv(finished.table)
    # Three networks and two baselines, of two numbers of labels, and a run on the published labels.
    assert len(rows) == len(WANTED) == 5 * 2 + 1
    for column in ("relative_error", "validation_relative_error", "relative_error_published_labels"):
        assert rows[column].between(0, 2).all()
    networks = rows[rows["recipe"].isin(SCALE.recipes)]
    assert networks["relative_error_published_protocol"].isna().all()
    assert rows["commit"].notna().all()
    assert rows["versions"].str.contains("torch=").all()
    assert rows.loc[rows["recipe"].isin(["e-simclr", "few-labels-surrogate"]), "pretraining_seconds"].gt(0).all()


def test_the_table_holds_the_error_of_the_saved_model_on_the_test_split(finished):
    row = next(row for row in table.read_rows(finished.table) if row["recipe"] == "e-simclr")
    model = finished.runs / Trial.from_row(row).folder
    assert evaluate(PLAN.file(finished.data, "test"), model) == pytest.approx(float(row["relative_error"]), abs=1e-7)


def test_the_published_protocol_is_the_lowest_error_over_epochs_on_the_test_split(finished):
    row = run_trial(WANTED[0], PLAN, finished.data, finished.runs, published_protocol=True)
    assert row["relative_error"] == pytest.approx(float(table.read_rows(finished.table)[0]["relative_error"]), abs=1e-9)
    logged = read_log(finished.runs / f"{WANTED[0].folder}-published-protocol", "validation_relative_error")[1]
    assert row["relative_error_published_protocol"] == pytest.approx(logged.min(), abs=1e-9)


@pytest.mark.parametrize("recipe", ["e-simclr", pytest.param("few-labels-surrogate", marks=pytest.mark.slow), "ridge"])
def test_a_row_run_again_from_its_record_gives_its_number(finished, recipe):
    row = [row for row in table.read_rows(finished.table) if row["recipe"] == recipe][-1]
    assert study.rerun(finished, row) <= 1e-6
    assert study.rerun(finished, row | {"relative_error": "0.5"}) > 1e-6


def test_a_row_is_not_run_again_on_other_data(finished):
    row = next(row for row in table.read_rows(finished.table) if row["recipe"] == "ridge")
    with pytest.raises(ValueError, match="`training_data` was other"):
        study.rerun(finished, row | {"training_data": "other"})


def test_a_study_goes_on_where_it_was_interrupted(runs, monkeypatch):
    done = study.Study(runs / "interrupted" / "table.csv", runs, runs / "data", {"blob": PLAN})
    quick = [Trial("blob", "empty-lattice", "smoke", labels, 0, draw) for labels in (3, 6) for draw in (0, 1)]
    real, started = study.run_trial, []

    def interrupted(trial, *arguments):
        started.append(trial)
        if len(started) == 3:
            raise KeyboardInterrupt
        return real(trial, *arguments)

    monkeypatch.setattr(study, "run_trial", interrupted)
    with pytest.raises(KeyboardInterrupt):
        study.run_study(done, quick)
    assert len(table.read_rows(done.table)) == 2
    study.run_study(done, quick)
    study.run_study(done, quick)
    assert len(started) == len(quick) + 1
    assert [table.identity(row) for row in table.read_rows(done.table)] == [
        table.identity(vars(trial)) for trial in quick
    ]


def test_a_group_that_another_process_works_on_is_left_to_it(runs):
    done = study.Study(runs / "claimed" / "table.csv", runs, runs / "data", {"blob": PLAN})
    group = [trial for trial in WANTED if trial.recipe == "ridge"]
    with study.claimed(runs / group[0].pretraining_folder) as mine:
        assert mine
        study.run_group(done, group)
    assert table.read_rows(done.table) == []


def test_a_row_enters_the_table_once(tmp_path):
    row = vars(WANTED[0]) | {"relative_error": 0.1}
    for _ in range(2):
        table.add_row(tmp_path / "table.csv", row)
    assert len(table.read_rows(tmp_path / "table.csv")) == 1
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="not a table of this study"):
        table.add_row(tmp_path / "other.csv", row)


def test_training_on_test_cells_is_refused(runs, tmp_path):
    leaking = replace(PLAN, seeds=PLAN.seeds | {"pool": 3}, samples=dict.fromkeys(PLAN.samples, 1))
    with pytest.raises(LeakError, match=r"cell 0 of the split test is cell 0 of the split pool"):
        datasets.make(leaking, tmp_path, tmp_path / "verification.txt")


@pytest.mark.parametrize(
    "copy",
    [
        lambda cell: np.roll(cell, (5, 11), (0, 1)),
        lambda cell: np.rot90(cell, 3),
        lambda cell: cell[::-1],
        lambda cell: np.roll(cell.T, 7, 0),
    ],
)
def test_symmetric_copies_in_two_splits_are_refused(runs, copy):
    pool = load_cells(PLAN.file(runs / "data", "pool"))
    copied = torch.from_numpy(copy(pool.epsilon[4, 0].numpy()).copy())[None, None]
    with pytest.raises(LeakError, match=r"cell 0 of the split test is cell 4 of the split pool"):
        check_disjoint({"pool": pool, "test": replace(pool, epsilon=copied)})
    check_disjoint({"pool": replace(pool, epsilon=torch.cat([pool.epsilon, copied]))})


@pytest.mark.parametrize("tolerable", [True, False])
def test_the_verification_is_kept_with_the_results(runs, tmp_path, monkeypatch, tolerable):
    def verify(file, samples):
        print(f"{samples} cells of {file.name}")
        if not tolerable:
            raise RuntimeError("beyond tolerance")

    monkeypatch.setattr(datasets, "verify", verify)
    monkeypatch.setattr(datasets.mpb, "is_available", lambda: True)
    kept = tmp_path / "verification.txt"
    if tolerable:
        datasets.make(replace(PLAN, verified=2), runs / "data", kept)
        assert "2 cells of test-converged.h5" in kept.read_text()
    else:
        with pytest.raises(RuntimeError, match="beyond tolerance"):
            datasets.make(replace(PLAN, verified=2), runs / "data", kept)
        assert not kept.exists()


@pytest.mark.parametrize("scale", ["smoke", "laptop", "paper"])
def test_the_plans_are_complete_and_their_seeds_differ(scale):
    seeds = []
    for name in ("blob", "gpm", "p1"):
        plan = datasets.load_plan(name, scale)
        seeds += plan.seeds.values()
        for settings in plan.labels.values():
            Plan(plan.family, 1, 0, 32, False, LabelSettings(**settings)).check()
        assert plan.samples["pool"] >= max(study.load_scale(scale).labels)
    assert len(set(seeds)) == len(seeds)
    wanted = study.trials(
        study.load_scale(scale), {name: datasets.load_plan(name, scale) for name in ("blob", "gpm")}, ["supervised"]
    )
    assert len({table.identity(vars(trial)) for trial in wanted}) == len(wanted)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="the datasets are blob, gpm, p1"):
        datasets.load_plan("scales", "smoke")
    with pytest.raises(ValueError, match="unknown recipes esimclr"):
        study.trials(SCALE, {"blob": PLAN}, ["esimclr"])


def test_what_baselines_see_has_the_symmetries_of_the_label(runs):
    cells = load_cells(PLAN.file(runs / "data", "pool"), labelled=True)
    moved = 2.5 * torch.rot90(cells.epsilon.roll((4, 10), (2, 3)), 1, (2, 3)).flip(3)
    np.testing.assert_allclose(
        baselines.features(moved.double()), baselines.features(cells.epsilon.double()), atol=1e-6
    )
    np.testing.assert_array_equal(baselines.NearestNeighbour(cells).predict(moved[:, 0]), cells.dos.numpy())


@pytest.mark.parametrize("name", ["ridge", "random-forest", "gaussian-process"])
def test_baselines_learn_what_their_features_tell(name):
    random = np.random.default_rng(0)
    filling, contrast = random.uniform(0.2, 0.8, (2, 60))
    edge = np.arange(32) / 32
    epsilon = torch.from_numpy(
        np.where(edge[None, :, None] < filling[:, None, None], 1 + 9 * contrast[:, None, None], 1.0)
    )
    epsilon = epsilon.expand(60, 32, 32)[:, None].float()
    ripple = np.sin(np.linspace(0, 20, 400))
    dos = baselines.empty_lattice()[:400] * (1 + 0.3 * (contrast * filling)[:, None] * ripple)
    cells = LabelledCells(epsilon, {}, "made up", torch.from_numpy(dos).float())
    model = baselines.BASELINES[name](cells.subset(np.arange(40)), cells.subset(np.arange(40, 50)), 0)
    held_out = cells.subset(np.arange(50, 60))
    errors = [
        baselines.relative_error(one.predict(held_out.epsilon[:, 0]), held_out.dos)
        for one in (model, baselines.EmptyLattice())
    ]
    assert errors[0] < 0.4 * errors[1]


def made_up_rows(draws=3, seeds=3):
    """Rows of a study in which E-SimCLR is half a percentage point better, and errors fall as a power of labels."""
    random = np.random.default_rng(1)
    rows = []
    for labels, seed, draw in np.ndindex(3, seeds, draws):
        count, noise = 50 * 4**labels, random.normal(0, 0.002)
        for recipe, offset in (("supervised", 0.0), ("e-simclr", -0.005), ("ridge", 0.02)):
            error = 0.4 * count**-0.5 + noise + offset + random.normal(0, 0.0002)
            rows.append(
                vars(Trial("blob", recipe, "laptop", count, seed, draw))
                | {"relative_error": error, "relative_error_published_protocol": np.nan}
            )
    return pd.DataFrame(rows)


def test_a_paired_test_sees_a_difference_below_the_spread():
    tests = comparison.paired_tests(made_up_rows())
    assert (tests["pairs"] == 9).all()
    np.testing.assert_allclose(tests["difference"], -0.005, atol=3e-4)
    assert (tests["p_value"] < 1e-2).all()
    assert (tests["deviation"] < 0.001).all()


def test_runs_that_share_a_draw_do_not_count_as_many():
    """One draw of labels on which the recipe is lucky, with whatever seed, is no evidence."""
    rows = made_up_rows()
    lucky = (rows["recipe"] == "e-simclr") & (rows["label_seed"] == 0)
    rows["relative_error"] += np.where(rows["recipe"] == "e-simclr", 0.005, 0.0) - np.where(lucky, 0.01, 0.0)
    tests = comparison.paired_tests(rows)
    assert (tests["difference"] < -0.002).all()
    assert (tests["p_value"] > 0.1).all()


def test_labels_needed_follow_the_power_law():
    labels = np.array([50, 200, 800])
    assert comparison.first_crossing(labels, labels**-0.5, 300**-0.5) == pytest.approx(300)
    assert comparison.first_crossing(labels, labels**-0.5, 1.0) == 50
    assert np.isnan(comparison.first_crossing(labels, labels**-0.5, 0.001))


def test_tables_and_figures_come_from_the_table_alone(finished, tmp_path, capsys):
    figures.main(["--table", str(finished.table), "--scale", "smoke", "--runs", str(tmp_path)])
    text = finished.table.with_suffix(".md").read_text()
    for words in ("E-SimCLR − supervised", "ridge regression", "trained on"):
        assert words in text
    for name in figures.FIGURES:
        assert finished.table.with_name(f"table_{name}.png").stat().st_size > 5000
    assert "no predictions for blob are drawn" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        figures.main(["--table", str(finished.table), "--scale", "paper"])
    assert "no rows of the scale paper" in capsys.readouterr().err


def test_a_recipe_that_has_changed_is_not_mixed_with_what_it_was(finished, monkeypatch):
    row = next(row for row in table.read_rows(finished.table) if row["recipe"] == "few-labels-surrogate")
    monkeypatch.setitem(trials.RECIPES, "few-labels-surrogate", {"finetune": {"learning_rate": 1.0}})
    for use in (lambda: study.unfinished(finished, WANTED), lambda: study.rerun(finished, row)):
        with pytest.raises(ValueError, match=r"the recipe few-labels-surrogate was .* now: give it another name"):
            use()


def test_labels_saved_are_told_of_what_was_run_alone(finished):
    rows = comparison.on_converged_labels(comparison.read_table(finished.table, "smoke"))
    part = rows[(rows["recipe"] != "supervised") | (rows["labels"] == 3)]
    assert set(comparison.labels_needed(part)["reference"]) == {3}
    with pytest.raises(ValueError, match="no rows of supervised"):
        figures.draw_labels_saved(part[part["recipe"] != "supervised"])


def test_predictions_are_drawn_where_the_models_are(finished):
    figures.main(["--table", str(finished.table), "--scale", "smoke", "--runs", str(finished.runs.parent)])
    assert finished.table.with_name("table_cells_blob.png").stat().st_size > 20000
    row = figures.shown(table.read_rows(finished.table), "smoke")["blob"]
    assert (row["recipe"], row["labels"]) == ("e-simclr", "6")


@pytest.mark.slow
def test_two_processes_make_the_rows_that_one_makes(finished, runs, tmp_path):
    both = replace(finished, table=tmp_path / "table.csv")
    study.run_study(both, WANTED, processes=2)
    one, two = (pd.read_csv(one.table).set_index(list(table.IDENTITY)).sort_index() for one in (finished, both))
    np.testing.assert_allclose(two["relative_error"], one["relative_error"], atol=1e-6)


@pytest.mark.slow
def test_the_command_makes_data_table_and_estimate(tmp_path, capsys):
    command = ["--scale", "smoke", "--datasets", "blob", "--recipes", "supervised", "ridge"]
    paths = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "table.csv")]
    assert study.main([*command, *paths]) == 0
    assert "estimate with 1 processes" in capsys.readouterr().out
    assert study.main(["--rerun", "1", *paths]) == 0


def test_all_cells_of_the_pool_are_drawn_once():
    scale = study.load_scale("laptop")
    wanted = study.trials(scale, {name: datasets.load_plan(name, "laptop") for name in scale.datasets}, scale.recipes)
    for labels, draws in ((800, 3), (3200, 1)):
        some = [one for one in wanted if (one.dataset, one.recipe, one.labels) == ("gpm", "e-simclr", labels)]
        assert len({one.label_seed for one in some}) == draws
        assert len(some) == draws * len(scale.pretraining_seeds)


def test_files_that_are_no_datasets_are_none():
    with pytest.raises(ValueError, match="unknown dataset 'recipes'; the datasets are blob, gpm, p1"):
        datasets.load_plan("recipes", "laptop")


def test_every_recipe_of_a_scale_has_its_encoder_and_its_name():
    scale = study.load_scale("recipes")
    plans = {name: datasets.load_plan(name, scale.name) for name in scale.datasets}
    for trial in study.trials(scale, plans, scale.recipes):
        assert trial.recipe in comparison.NAMES
    encoders = {trial.encoder for trial in study.trials(scale, plans, scale.recipes)}
    for name in encoders:
        assert Encoder.of(name)(torch.full((2, 1, 32, 32), 2.0)).shape[0] == 2
