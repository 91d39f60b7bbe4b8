"""What is said of a sweep: the verdict, the table, the recipe and the figures, from trials made by hand."""

import csv
import math

import pytest

from post_platform.config import load_config
from post_platform.search_config import REFERENCE, load_search
from post_platform.search_report import draw_parallel, draw_pareto, draw_sensitivity, pareto, recipe, table, verdict
from post_platform.search_trial import Sweep, Trial


def trial(number, *scores, repeats=False, seed=0, state="complete", **weights):
    datasets = {f"set_{place}": score for place, score in enumerate(scores)}
    report = {"step": 9, "score": sum(scores) / len(scores), "datasets": datasets}
    return Trial(number, {**REFERENCE, **weights}, seed, repeats, state, [report], run_id="r")


def test_the_verdict_by_hand():
    trials = [
        trial(0, 0.50), trial(1, 0.90, center=90.0), trial(2, 0.95, state="stopped"),
        trial(1, 0.60, repeats=True, seed=1), trial(1, 0.64, repeats=True, seed=2),
        trial(0, 0.52, repeats=True, seed=1), trial(0, 0.54, repeats=True, seed=2),
    ]  # fmt: skip
    found = verdict(trials)
    assert (found.best, found.weights["center"]) == (1, 90.0), "a stopped trial's score is that of fewer steps"
    assert found.best_scores == pytest.approx([0.60, 0.64]), "without the 0.90 for which it was chosen"
    assert found.reference_scores == pytest.approx([0.50, 0.52, 0.54])
    assert found.noise == pytest.approx(math.sqrt((0.0008 + 0.0008) / 3))
    assert found.gain == pytest.approx(0.62 - 0.52)
    assert found.interval == pytest.approx(3.1824 * found.noise * math.sqrt(1 / 2 + 1 / 3), rel=1e-4)
    assert found.beats
    assert "trial 1 against trial 0, on other seeds: +0.1000" in str(found)


def test_a_gain_within_the_noise_is_none():
    trials = [trial(0, 0.5), trial(1, 0.9), trial(1, 0.5, repeats=True, seed=1), trial(1, 0.6, repeats=True, seed=2)]
    assert not verdict(trials).beats
    assert str(verdict(trials)).endswith("not better by more than the noise")


def test_a_gain_above_the_noise_of_one_run_may_still_be_chance():
    """Gain 0.10, noise 0.05 x sqrt(2), one degree of freedom: the interval is eleven times as wide as the gain."""
    trials = [trial(0, 0.5), trial(1, 0.9), trial(1, 0.55, repeats=True, seed=1), trial(1, 0.65, repeats=True, seed=2)]
    found = verdict(trials)
    assert found.gain == pytest.approx(0.10)
    assert found.noise == pytest.approx(0.05 * 2**0.5)
    assert found.gain > found.noise
    assert found.interval == pytest.approx(12.7062 * found.noise * 1.5**0.5, rel=1e-4)
    assert not found.beats


def test_what_is_not_known_is_not_claimed():
    trials = [trial(0, 0.5), trial(1, 0.9), trial(1, 0.8, repeats=True, seed=1)]
    assert not verdict(trials).beats
    assert str(verdict(trials)).endswith("of one run each: nobody knows whether that is more than the noise")
    assert str(verdict(trials[:2])) == "trial 1 has the best score; without repeated seeds nobody knows by how much"
    assert str(verdict([trial(0, 0.5), trial(1, 0.4)])) == "no recipe beat trial 0, the reference's"


def test_the_front_across_datasets_by_hand():
    trials = [trial(0, 0.5, 0.5), trial(1, 0.9, 0.1), trial(2, 0.4, 0.5), trial(3, 0.1, 0.6), trial(4, 0.9, 0.1)]
    assert [found.number for found in pareto(trials)] == [0, 1, 3, 4], (
        "2 is no better than 0 anywhere; 1 and 4 are equal"
    )


def test_the_table_and_the_recipe(tmp_path):
    sweep = Sweep(tmp_path, *load_search(None, ["train.steps=9", "eval.every=1"]))
    sweep.trials = [trial(0, 0.5, 0.3), trial(1, 0.9, 0.1, offset=0.02), trial(0, 0.4, 0.2, repeats=True, seed=1)]
    rows = list(csv.DictReader(table(sweep).splitlines()))
    assert [row["score"] for row in rows] == ["0.40000", "0.50000", "0.30000"]
    assert [row["pareto"] for row in rows] == ["1", "1", "0"]
    assert (rows[1]["offset"], rows[1]["set_1"], rows[2]["seed"]) == ("0.02", "0.10000", "1")
    (sweep.folder / "sweep.yaml").write_text("optim.lr: 0.25\ntrain.steps: 9\neval.every: 3\nsearch.trials: 5\n")
    best = sweep.folder / "best.yaml"
    best.write_text(recipe(sweep.folder / "sweep.yaml", sweep.best().weights, "sweep_best"))
    config = load_config(best)
    assert (config.optim.lr, config.loss.semantic, config.loss.center, config.loss.offset) == (0.25, 1.0, 200.0, 0.02)
    assert config.run.name == "sweep_best"


@pytest.mark.parametrize("datasets", [1, 3, 6])
def test_the_figures_are_drawn(datasets, tmp_path):
    trials = [
        trial(n, *[0.1 * n + 0.01 * d for d in range(datasets)], **{name: 0.01 * 2**n for name in REFERENCE})
        for n in range(4)
    ]
    trials += [trial(4, *[0.2] * datasets, state="stopped"), Trial(5, dict(REFERENCE), 0, state="failed")]
    for figure in (
        draw_parallel(trials, list(REFERENCE)),
        draw_sensitivity(trials, list(REFERENCE), verdict(trials)),
        draw_pareto(trials),
    ):
        figure.savefig(tmp_path / "figure.png")
        assert (tmp_path / "figure.png").stat().st_size > 10_000
