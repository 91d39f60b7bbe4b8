"""Runs side by side, from a real store filled by hand: every number here can be worked out by eye."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from post_platform.comparison import as_json, compare
from post_platform.errors import PostError
from post_platform.experiment_log import ExperimentLog
from post_platform.experiment_reader import ExperimentReader
from post_platform.training.ledger import EMPTY, Ledger

SCRIPT = Path(__file__).parents[1] / "pipelines" / "compare.py"
PICTURE = np.full((20, 60, 3), 90, dtype=np.uint8)


class Store:
    """Runs of the experiment `post` in `folder`/runs/mlflow.db."""

    def __init__(self, folder):
        self.folder = folder / "runs"
        self.uri = f"sqlite:///{self.folder}/mlflow.db"

    def run(self, name, scores=(), *, status="FINISHED", keys=("0/a", "0/b"), digest="d1", picture=False, **params):
        """A run whose validations, at steps 10, 20, ..., found `scores`; returns its id."""
        log = ExperimentLog.open(None, "post", name, default_dir=self.folder)
        log.log_params({"seed": 0, "data.val_split": "val", "run.name": name, **params})
        log.log_inputs({"kitti_mots/val": digest}, "val")
        for number, found in enumerate(scores, start=1):
            log.log_metrics({f"val/{key}": value for key, value in found.items()}, 10 * number)
            log.log_metrics({"train/loss/total": 1 / number, "data/bad_samples": 0}, 10 * number)
        if keys:
            path = self.folder / f"{name}-ledger" / "ledger.jsonl"
            path.parent.mkdir(parents=True)
            ledger = Ledger(path, 0, EMPTY)
            for step, key in enumerate(keys, start=1):
                ledger.append(step, [(step, f"kitti_mots/{key}")])
            log.log_file(path)
        if picture:
            log.log_image(PICTURE, "kitti_mots/0002_000008", 10 * len(scores))
        if status == "RUNNING":
            assert log.flush()
        else:
            log.finish(status)
        return log.run_id

    def compare(self, *names, **options):
        reader = ExperimentReader(self.uri, self.folder)
        return compare(reader, [reader.find(name) for name in names], **options)


def scores(smotsa, **more):
    return {"mean/score": smotsa, "kitti_mots/sMOTSA": smotsa, **{f"kitti_mots/{k}": v for k, v in more.items()}}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


def row(found, metric, native_class="", dataset="kitti_mots"):
    (entry,) = [r for r in found.datasets[dataset] if (r.metric, r.native_class) == (metric, native_class)]
    return entry


def test_difference_is_measured_by_the_spread_of_repeated_seeds(store):
    for seed, value in enumerate((0.50, 0.52, 0.54)):  # standard deviation 0.02
        store.run(f"a{seed}", [scores(value)], seed=seed, lr=1)
    for seed, value in enumerate((0.70, 0.73)):  # 0.03 / sqrt(2)
        store.run(f"b{seed}", [scores(value)], seed=seed, lr=2)
    found = store.compare("a0", "b0", "a1")
    better, same = row(found, "sMOTSA").differences
    assert better.value == pytest.approx(0.2)
    assert better.noise == pytest.approx(math.sqrt(0.02**2 + 0.03**2 / 2))
    assert better.verdict == "better"
    assert (same.value, same.noise, same.verdict) == (pytest.approx(0.02), pytest.approx(0.02 * 2**0.5), "noise")
    assert [pair.source for pair in found.pairs] == [
        "repeated seeds: A 3, B 2",
        "3 seeds of both, which differ in nothing else",
    ]
    assert found.config == {"lr": ("1", "2", "1"), "seed": ("0", "0", "1")}
    assert found.mean.values == (0.50, 0.70, 0.52)


def test_seeds_of_one_run_are_taken_for_both_and_that_is_said(store):
    for seed, value in enumerate((0.50, 0.54)):
        store.run(f"a{seed}", [scores(value)], seed=seed)
    store.run("b", [scores(0.3)], lr=2)
    found = store.compare("b", "a0")
    assert found.pairs[0].source == "2 seeds of B only, taken for both: the other was not repeated"
    assert row(found, "sMOTSA").differences[0].noise == pytest.approx(0.04)  # sqrt(2) * 0.04 / sqrt(2)


def test_a_repeat_has_another_seed_the_same_config_data_and_step_and_has_finished(store):
    store.run("a", [scores(0.5)])
    store.run("same-seed", [scores(0.6)])
    store.run("other-lr", [scores(0.6)], seed=1, lr=2)
    store.run("other-data", [scores(0.6)], seed=2, digest="d2")
    store.run("stopped", [scores(0.6)], seed=3, status="KILLED")
    store.run("longer", [scores(0.6), scores(0.6)], seed=4)
    found = store.compare("a", "same-seed")
    assert found.pairs[0].source == ""
    assert row(found, "sMOTSA").differences[0].noise is None
    assert row(found, "sMOTSA").differences[0].verdict == ""


def test_a_repeat_may_be_watched_otherwise(store):
    """How often a run looks at itself, and what it keeps, changes no weight."""
    settings = ("eval.every", "eval.overlays", "train.checkpoint_every", "train.keep", "train.log_every")
    store.run("a", [scores(0.50)], **dict.fromkeys((*settings, "train.max_failures"), 1))
    store.run("again", [scores(0.54)], seed=1, **dict.fromkeys((*settings, "train.max_failures"), 2))
    store.run("b", [scores(0.3)], lr=2)
    found = store.compare("b", "a")
    assert found.pairs[0].source == "2 seeds of B only, taken for both: the other was not repeated"
    assert row(found, "sMOTSA").differences[0].noise == pytest.approx(0.04)


def test_without_repeats_the_last_validations_are_the_noise_and_are_called_so(store):
    store.run("a", [scores(0.1), *(scores(v) for v in (0.4, 0.5, 0.4, 0.5, 0.4))])
    store.run("b", [scores(v) for v in (0.5, 0.5, 0.5)], lr=2)
    found = store.compare("a", "b")
    assert found.pairs[0].source.startswith("no repeated seeds: spread of each run's last 5 and 3 validations")
    assert row(found, "sMOTSA").differences[0].noise == pytest.approx(0.3**0.5 / 10)  # of 4, 5, 4, 5, 4 tenths
    store.run("c", [scores(0.5), scores(0.5)], lr=3)
    assert store.compare("a", "c").pairs[0].source == "", "two validations tell nothing"


def test_fewer_identity_switches_are_better(store):
    for name, lr, values in (("a", 1, (9.0, 9.0, 9.0)), ("b", 2, (2.0, 2.0, 2.0))):
        store.run(name, [scores(0.5, IDS=v) for v in values], lr=lr)
    found = row(store.compare("a", "b"), "IDS").differences[0]
    assert (found.value, found.verdict) == (-7, "better")


def test_a_score_that_the_last_validation_left_undefined_is_not_the_one_before(store):
    store.run("a", [scores(0.5, **{"PQ/car": 0.9}), scores(0.6)])
    store.run("b", [scores(0.5, **{"PQ/car": 0.9}), scores(0.6, **{"PQ/car": 0.8})])
    found = row(store.compare("a", "b"), "PQ", "car")
    assert (found.values, found.differences) == ((None, 0.8), (None,))


def test_ledgers(store):
    store.run("a", [scores(0.5)])
    store.run("b", [scores(0.5)], keys=("0/a", "0/c"))
    store.run("c", [scores(0.5)], keys=("0/a", "0/b", "0/c"))
    gone = store.run("d", [scores(0.5)])
    (store.folder / "mlartifacts" / gone / "artifacts" / "ledger.jsonl").unlink()
    broken = store.run("e", [scores(0.5)])
    (store.folder / "mlartifacts" / broken / "artifacts" / "ledger.jsonl").write_text('{"step": 7}\n')
    found = store.compare("a", "b", "c", "d", "e")
    assert [(entry["same"], entry["parting"]) for entry in found.ledgers[:2]] == [(False, 2), (True, None)]
    assert found.ledgers[1]["text"] == "the same samples in the same order over 2 steps, then one has 1 more"
    assert found.ledgers[2] == {
        "runs": ["A", "D"], "same": None, "parting": None, "steps": None, "text": "not known: a ledger is missing",
    }  # fmt: skip
    assert "line 1: is not the record of step 1" in found.ledgers[3]["text"]
    assert "D has no ledger in MLflow (deleted, or never stored)" in found.notes


def test_shares_are_weighted_by_the_steps_between_commits(store):
    ids = [store.run(name) for name in "ab"]
    client = MlflowClient(store.uri)
    for dataset, points in {"x": {10: 1.0, 40: 0.5}, "y": {40: 0.5}}.items():
        for step, value in points.items():
            client.log_metric(ids[0], f"data/{dataset}/share", value, step=step)
    assert store.compare("a", "b").runs[0].shares() == {"x": (10 + 15) / 40, "y": 15 / 40}


def test_runs_still_going_stopped_or_without_scores_are_said(store):
    store.run("a", [scores(0.5)], status="RUNNING", keys=())
    store.run("b", [scores(0.6), scores(0.7)], status="KILLED")
    store.run("c", status="RUNNING", keys=())
    found = store.compare("a", "b", "c")
    assert {
        "A is still going, at step 10: its scores are not final",
        "B did not finish: KILLED, at step 20",
        "C has no scores yet",
        "scored at different steps: A 10, B 20",
        "A has no ledger in MLflow (stored when a run ends)",
    } <= set(found.notes)
    assert found.mean.values == (0.5, 0.7, None)
    assert found.mean.differences[1] is None


def test_what_was_scored_on_other_data_gets_no_difference(store):
    store.run("a", [scores(0.5)])
    store.run("other-version", [scores(0.6)], digest="d2")
    store.run("fewer-frames", [scores(0.6)], **{"eval.max_frames": 8})
    store.run("more", [{**scores(0.6), "coco_panoptic/PQ": 0.4}])
    found = store.compare("a", "other-version", "fewer-frames", "more")
    kitti = row(found, "sMOTSA").differences
    assert [change is None for change in kitti] == [True, True, False]
    assert found.mean.differences == (None, None, None)
    for letter in "BC":
        start = f"{letter} and A: other data.val_split, eval.max_frames or manifest of "
        assert any(note.startswith(start) and "kitti_mots" in note for note in found.notes)
    assert any(note.startswith("A and B and C: not scored on coco_panoptic") for note in found.notes)
    assert found.config["manifest of kitti_mots/val"] == ("d1", "d2", "d1", "d1")


def test_pictures_that_were_deleted_or_are_none_are_said(store):
    ids = [store.run(name, [scores(0.5, IDS=1)], picture=True) for name in ("a", "b", "c")]
    files = [store.folder / "mlartifacts" / run / "artifacts" / "images" for run in ids]
    for path in files[1].iterdir():
        path.unlink()
    next(files[2].glob("*.png")).write_bytes(b"<svg onload='alert(1)'/>")
    found = store.compare("a", "b", "c")
    (panel,) = found.pictures
    assert (panel.dataset, panel.name) == ("kitti_mots", "0002_000008")
    assert [picture is not None for picture in panel.pictures] == [True, False, False]
    assert panel.pictures[0].size == (60, 20)
    assert "the images of B are not in MLflow: deleted, or never stored" in found.notes
    assert "the timelines of A are not in MLflow: deleted, or never stored" in found.notes
    assert any(note.startswith("C: images/kitti_mots") and note.endswith("cannot be read") for note in found.notes)
    assert store.compare("a", "b", pictures=0).pictures == []


def test_runs_are_found_by_id_by_name_and_by_rank(store):
    ids = {name: store.run(name, [scores(value)]) for name, value in {"a": 0.5, "b": 0.7, "c": 0.6}.items()}
    twins = [store.run("twin") for _ in range(1)]
    reader = ExperimentReader(store.uri, store.folder)
    assert reader.find(ids["a"]).name == "a"
    assert reader.find("b", "post").run_id == ids["b"]
    assert [run.name for run in reader.best("post", 2)] == ["b", "c"]
    assert [run.name for run in reader.best("post", 9)] == ["b", "c", "a"], "a run without scores has no rank"
    MlflowClient(store.uri).set_tag(ids["c"], "mlflow.runName", "twin")
    with pytest.raises(PostError, match=r"^2 runs are named 'twin'$") as caught:
        reader.find("twin")
    assert twins[0] in caught.value.hint
    with pytest.raises(PostError, match=r"^no run 'bb'"):
        reader.find("bb")
    with pytest.raises(PostError, match=r"^no experiment 'pos'; did you mean post\?"):
        reader.best("pos", 2)
    MlflowClient(store.uri).delete_run(ids["a"])
    with pytest.raises(PostError, match="was deleted"):
        reader.find(ids["a"])
    with pytest.raises(PostError, match=r"^MLflow: .*not found"):
        reader.find("0" * 32)
    with pytest.raises(PostError, match="one run is named twice"):
        store.compare("b", "b")


def run_script(folder, *arguments):
    command = [sys.executable, SCRIPT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)


def test_the_command_prints_a_table_and_writes_page_and_json(store, tmp_path):
    store.run("first", [scores(0.5, IDS=3)], lr=1)
    store.run("\x1b[2Jsecond[red]", [scores(0.75, IDS=1)], lr=2)
    done = run_script(tmp_path, "--top", 2, "--json", "found.json")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout, "a run's name steers no terminal"
    assert "second[red]" in done.stdout
    assert "sMOTSA*   0.7500   0.5000   -0.2500" in done.stdout
    assert "noise of B − A: not known" in done.stdout
    assert (tmp_path / "runs" / "compare.html").read_text().startswith("<!DOCTYPE html>")
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["datasets"]["kitti_mots"]["headline"] == "sMOTSA"
    assert found["datasets"]["kitti_mots"]["scores"]["IDS"]["differences"]["B"]["value"] == 2
    assert found["config"] == {"lr": {"A": "2", "B": "1"}}
    assert found["noise"] == {"B": None}
    assert as_json(store.compare("first", store.run("third", [scores(0.1)])))["ledgers"][0]["same"] is True


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 1, "error: no MLflow database "),
        (("one",), 2, "two RUNs or more"),
        (("a", "b", "--top", "3"), 2, "two RUNs or more"),
        (("--top", "0"), 2, "--top N of at least 2"),
        (("a", "b", "--pictures", "-1"), 2, "--pictures: give 0 or more"),
        (("a", "b", "--uri", "http://127.0.0.1:1"), 1, "error: cannot reach MLflow"),
    ],
)
def test_mistakes_are_one_line(tmp_path, arguments, code, message):
    done = run_script(tmp_path, *arguments)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir()), "nothing is made where nothing was found"
