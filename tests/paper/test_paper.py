"""What benchmarks/paper reads out of its runs, on runs whose answer is known."""

import numpy as np
import pytest

import analysis
import figures_of_text
from analysis import Estimate, Grid, Runs, best_decay, chosen, exponent, kept, near, one_at_a_time
from experiments import cells, coupled
from results import Cell, Losses, Results, Scores, TextCell
from summary import summary

RATES = 1e-3 * 2.0 ** np.arange(9)
DECAYS = 1e-3 * 2.0 ** np.arange(13)
SEEDS = 3


@pytest.fixture(autouse=True)
def _short_bootstrap(monkeypatch):
    monkeypatch.setattr(analysis, "DRAWS", 200)


def valley(lean, noise=0.0, floor=0.0):
    """A Grid whose best decay is ~ α^lean: a valley, `floor` deep per octave of α from its middle."""
    x, y = np.log2(RATES)[:, None, None], np.log2(DECAYS)[:, None]
    x, y = x - x.mean(), y - y.mean()
    values = 0.4 + 0.01 * (y - lean * x - 0.3) ** 2 + floor * np.abs(x)
    shape = (len(RATES), len(DECAYS), SEEDS)
    values = values + noise * np.random.default_rng(1).standard_normal(shape)
    return Grid(RATES, DECAYS, Scores(values, values, values + 0.1, values + 0.1))


def of_images(runs):
    return [run for run in runs if isinstance(run, Cell)]


def slope(grid, resample_rows=True):
    return exponent(grid, "loss", grid.rows, near(grid, "loss"), resample_rows)


@pytest.mark.parametrize(("lean", "resample_rows"), [(-0.4, True), (0.5, False)])
def test_the_slope_of_a_valley(lean, resample_rows):
    """The best decay is between two cells in every row: the parabola finds it."""
    np.testing.assert_allclose(slope(valley(lean), resample_rows), [lean] * 3, atol=1e-6)


def test_the_interval_grows_with_noise_and_holds_the_truth():
    narrow, wide = slope(valley(-0.4, 0.001)), slope(valley(-0.4, 0.01))
    for found in (narrow, wide):
        assert found.low < -0.4 < found.high
    assert 0 < 2 * (narrow.high - narrow.low) < wide.high - wide.low


def test_rates_that_do_not_count():
    grid = valley(0, floor=0.1)  # only the middle rate is within a tenth of the best
    assert near(grid, "loss").tolist() == [4]
    assert np.isnan(slope(grid)).all()
    # The best decay of some rates lies outside the grid: a line through its edge would lean to the grid's own axis.
    steep = valley(-2.0)
    assert 3 <= len(near(steep, "loss")) < len(RATES)
    np.testing.assert_allclose(slope(steep), [-2.0] * 3, atol=1e-6)


def test_what_diverged_or_is_missing_is_never_best():
    values = np.array([[np.inf, 3.0, 2.0, 3.0], [np.nan] * 4, [1.0, 2.0, np.inf, np.nan]])
    found = np.exp(best_decay(values, np.array([1.0, 10.0, 100.0, 1000.0])))
    np.testing.assert_allclose(found, [100, np.nan, 1])  # no parabola at an edge


def test_tuning_one_at_a_time_finds_the_best_only_of_a_valley_that_does_not_lean():
    def loss(lean):
        grid = valley(lean, floor=0.01)
        return one_at_a_time(grid, "loss") - grid.mean("test_loss").min()

    assert loss(0) == pytest.approx(0, abs=1e-9)
    assert loss(-1) > 0.01


def test_keeping_the_decay_costs_what_the_valley_says():
    """At 8 times α the best decay of a valley of lean −1 is 3 octaves away: 0.01·3²."""
    for lean, cost in ((0, 0), (-1, 0.09)):
        for steps in (3, -3):
            assert kept(valley(lean), "loss", steps) == pytest.approx(cost, abs=0.003)


def test_the_decay_of_a_schedule_is_chosen_by_validation():
    def scores(validation, test):
        return Scores(*(np.full((SEEDS, 4), x) for x in (validation, 0.1, test, 0.1)))

    assert chosen({0.1: scores(0.5, 0.3), 0.01: scores(0.4, 0.6)}, np.mean) == 0.01


def test_both_views_of_a_run_of_adamw_find_it():
    """Of runs that lie on λ = 0.032 alone: one column of ours, a diagonal of the coupled grid."""
    runs = [run for run in of_images(cells(quick=False)) if run.algorithm == "adamw"]
    here = {run: {20: Scores(1.0, 1.0, 1.0, 1.0)} for run in runs if run.decay == 0.032}
    grids = Runs(here, quick=False).separability()
    for name in ("adamw", "keras-adamw"):
        found = np.argwhere(np.isfinite(grids[name].mean("test_loss")))
        assert len(found) == (11 if name == "adamw" else 9)  # λ/α of 64 and more are outside
        for i, j in found:
            decay = grids[name].decays[j]
            rate = grids[name].rows[i]
            assert (decay if name == "adamw" else coupled(rate, decay)) == 0.032


def test_a_summary_of_no_runs_has_no_numbers():
    found = summary(Runs({}, quick=False))
    assert np.isnan(found["separability"]["adamw"]["loss"]["slope"]).all()
    assert found["restarts"] == {}


def test_all_that_is_asked_for_is_planned():
    """A run that nobody planned would be a hole in a picture."""
    scores = Scores(*[1.0] * 5)
    done = {
        run: dict.fromkeys(range(run.scored, run.epochs + 1, run.scored), scores)
        for run in of_images(cells(quick=False))
    }
    runs = Runs(done, quick=False)
    tuned = [grid for kinds in runs.fine_tuning().values() for grid in kinds.values()]
    grids = (runs.separability(), runs.budgets(), runs.kinds(), runs.sparsity())
    for grid in (*(g for named in grids for g in named.values()), *runs.checks(), *tuned):
        assert np.isfinite(grid.scores).all()
    curves = [c for schedules in runs.curves().values() for c in schedules.values()]
    assert len(curves) == 6
    assert {scores.test_loss.shape for c in curves for scores in c.values()} == {(SEEDS, 31)}


def test_every_run_is_planned_once_and_each_of_keras_beside_one_of_ours():
    planned = set(cells(quick=False))
    assert len(planned) == len(cells(quick=False))
    assert set(cells(False, ["budgets"])) < planned
    assert {run.last for run in cells(quick=True)} == {2, 20}
    theirs = [run for run in of_images(planned) if run.algorithm == "keras-adamw"]
    assert theirs
    assert all(run._replace(algorithm="adamw") in planned for run in theirs)


A = Cell("adamw", "cosine", 0.1, 1e-3, images=5000, epochs=2, scored=1, batch=50, seed=0)
B = A._replace(seed=1)
SCORES = {1: Scores(0.5, 0.25, 0.75, 0.5, 0.0), 2: Scores(0.25, 0.125, 0.5, 0.25, 0.5)}


@pytest.mark.parametrize("cut", [1, 20])
def test_a_run_whose_lines_a_kill_cut_is_run_again(tmp_path, cut):
    results = Results(tmp_path / "new")
    assert results.done() == {}
    results.add(A, SCORES)
    results.add(B, SCORES)
    assert Results(tmp_path / "new").done() == {A: SCORES, B: SCORES}
    whole = (tmp_path / "new" / "runs.csv").read_bytes()
    (tmp_path / "new" / "runs.csv").write_bytes(whole[:-cut])
    again = Results(tmp_path / "new")
    assert again.done() == {A: SCORES}
    again.mend()
    again.add(B, SCORES)
    assert Results(tmp_path / "new").done() == {A: SCORES, B: SCORES}


def test_an_estimate_reads_as_in_the_text():
    assert str(Estimate(-0.414, -0.5, 0.0)) == "-0.41 [-0.50, 0.00]"


# --- on text ---


def text_runs(loss):
    """All runs on text, with losses that a function of the cell gives."""
    runs = [run for run in cells(quick=False) if isinstance(run, TextCell)]
    return {run: {run.last: Losses(loss(run), loss(run) + 0.1)} for run in runs}


def test_what_the_widths_say(tmp_path):
    """A best rate that falls with the width without multipliers, and stays with them."""

    def loss(run):
        moved = 0 if "scaled" in run.form else np.log2(run.width / 64)
        return 1 + 0.1 * (np.log(run.rate / 0.016) / np.log(2.5) + moved) ** 2 + 0.001 * run.seed

    found = figures_of_text.widths(text_runs(loss), quick=False, out=tmp_path)
    assert found["adamw"]["256"]["best rate"] == 0.0025
    assert found["adamw-scaled"]["256"]["best rate"] == 0.016
    assert found["adamw"]["256"]["test loss at the carried rate"]["mean"] == pytest.approx(1.501)
    assert found["adamw-scaled"]["256"]["test loss"]["seeds"] == pytest.approx([1.1, 1.101, 1.102])
    assert found["adamw"]["64"]["sensitivity"] == pytest.approx(
        0.1 * (9 + 4 + 1 + 0 + 1) / 5, abs=0.01
    )
    [(name, estimate)] = [(n, x) for n, x in found.items() if "independent − coupled" in n]
    assert estimate == [0, 0, 0], name
    assert (tmp_path / "widths.png").exists()
    assert figures_of_text.widths({}, quick=False, out=tmp_path) is None


def test_what_muon_says(tmp_path):
    def loss(run):
        of_form = {"adamw": 1.5, "keras-muon": 1.4, "muon": 1.2, "muon-bfloat16": 1.21}
        return of_form.get(run.form, 0) + (0.1 * abs(np.log2(run.rate / 0.008)) + 0.01 * run.seed)

    found = figures_of_text.muon(text_runs(loss), quick=False, out=tmp_path)
    assert found["muon"]["best rate"] == 0.008
    assert found["ours − Keras'"] == pytest.approx([-0.2] * 3)
    assert found["products in bfloat16 − in float32"] == pytest.approx([0.01] * 3)
