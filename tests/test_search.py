"""The search: what may vary, what a restart remembers, and what is said of the result; and a sweep that is killed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from killing import SETTINGS, wait_until
from mlflow import MlflowClient
from optuna.trial import TrialState
from torch import nn

from post_platform.config import load_config
from post_platform.errors import ConfigError, PostError
from post_platform.experiment_sweep import PARENT
from post_platform.search import Search, search, space, study
from post_platform.search_config import REFERENCE, load_search, refuse_changes, store
from post_platform.search_trial import Sweep, Trial, asha
from post_platform.training.optimise import LearnedWeights

ROOT = Path(__file__).resolve().parent.parent
SHORT = ("train.steps=9", "eval.every=1", "train.workers=1", "search.random=2")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("search.kitti_step=[1,2]", "by design no dataset has a number of its own"),
        ("search.kitti_step.center=[1,2]", "by design no dataset has a number of its own"),
        ("search.center={kitti_step: [1,2]}", "by design no dataset has a number of its own"),
        ("search={coco_panoptic: [1,2]}", "by design no dataset has a number of its own"),
        ("search.weights=[1,2]", "by design no dataset has a number of its own"),
        ("search.lr=[1,2]", "unknown config key 'search.lr'; did you mean optim.lr?"),
        ("search.semantic=[1,2]", "unknown config key 'search.semantic'"),
        ("search.alpha=[0,1]", "unknown config key 'search.alpha'"),
    ],
)
def test_the_space_holds_three_global_ratios_and_nothing_else(override, message):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        load_search(None, [override])


def test_the_space_is_log_uniform_and_holds_no_dataset(tmp_path):
    found = space(Sweep(tmp_path, *load_search(None, SHORT)))
    assert sorted(found) == ["center", "offset", "prev_offset"]
    assert all(distribution.log for distribution in found.values())
    assert sorted(space(Sweep(tmp_path, *load_search(None, ["model.branches=semantic,center,offset"])))) == [
        "center",
        "offset",
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss.center=3", "loss.center is set, but the search varies it; its range: search.center"),
        ("loss.semantic=2", "loss.semantic is set, but the search pins it"),
        ("loss.weighting=learned", "loss.weighting is set, but the search is for fixed weights"),
        ("search.center=[1,100]", "search.center: must hold 200, the reference's"),
        ("search.offset=[1,0.001]", r"search.offset: must be \[smallest, largest\]"),
        ("search.trials=0", "search.trials: must be >= 1, got 0"),
        ("eval.every=0", "eval.every: must be below train.steps"),
        ("run.dir=s3://bucket/runs", "run.dir: "),
    ],
)
def test_what_cannot_be_searched_is_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        load_search(None, [override])


def test_a_resumed_sweep_may_grow_and_nothing_else(tmp_path):
    stored = tmp_path / "sweep.yaml"
    stored.write_text("search.trials: 4\noptim.lr: 0.1\n")
    refuse_changes(stored, *load_search(stored, ["search.trials=8", "search.repeats=3", "train.log_every=7"]))
    refuse_changes(stored, *load_search(stored, ["train.workers=1", "mlflow.experiment=other"]))
    with pytest.raises(ConfigError, match=r"another configuration: train.steps: 60000 -> 70000$"):
        refuse_changes(stored, *load_search(stored, ["train.steps=70000"]))
    with pytest.raises(ConfigError, match=r"optim.lr: 0.1 -> 0.2; search.center: .* -> \(1.0, 500.0\)"):
        refuse_changes(stored, *load_search(stored, ["optim.lr=0.2", "search.center=[1,500]"]))


def test_what_a_sweep_was_begun_with_is_never_half_written(tmp_path, monkeypatch):
    stored = tmp_path / "sweep.yaml"
    before = load_search(None, ["optim.lr=0.25", "search.trials=7"])
    keys = store(stored, *before)
    assert (keys["optim.lr"], keys["search.trials"]) == (0.25, 7)
    assert not {"loss.semantic", "loss.center", "loss.offset", "loss.prev_offset", "loss.weighting"} & keys.keys()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        store(stored, *load_search(None, ["search.trials=8"]))
    assert load_search(stored) == before


def test_what_every_trial_would_refuse_is_refused_before_the_sweep_is_begun(toy_shards, tmp_path):
    """Data, and the weights that trials start from: without a folder, an MLflow run or Ray."""
    place = f"run.dir={tmp_path / 'runs'}"
    for override, message in (
        (f"data.root={tmp_path}", "no converted dataset"),
        (f"model.init_from={tmp_path / 'none.pth'}", "model.init_from: .*none.pth"),
        ("data.val_split=train", "scored on videos that are trained on"),
    ):
        with pytest.raises(PostError, match=message):
            search(*load_search(None, [f"data.root={toy_shards}", place, "model.backbone=small", override]))
    assert not (tmp_path / "runs").exists()


class NoChildren:
    """A store that takes everything."""

    def __init__(self):
        self.parent, self.tags = SimpleNamespace(uri="nowhere"), []

    def begin(self, name, tags):
        return f"run of {name}"

    def tag(self, run_id, name, value):
        self.tags.append((run_id, value))


def searcher(sweep, waiting=(), more=0):
    return Search(sweep, NoChildren(), lambda trial: None, list(waiting), more)


def scored(step, score, done=False):
    return {"step": step, "score": score, "datasets/kitti_step": score, "done": done}


@pytest.fixture
def sweep(tmp_path):
    return Sweep(tmp_path, *load_search(None, SHORT))


def test_trial_0_is_the_reference_and_the_semantic_weight_is_1(sweep):
    found = searcher(sweep, more=2)
    first, second = found.suggest("a")["run"].loss, found.suggest("b")["run"].loss
    assert (first.semantic, first.center, first.offset, first.prev_offset) == (1.0, 200.0, 0.01, 0.01)
    assert second.semantic == 1.0
    assert second.center != 200.0
    assert found.suggest("c") == "FINISHED"
    stored = json.loads((sweep.folder / "trial_000/run.json").read_text())
    assert stored == {"mlflow_uri": "nowhere", "mlflow_run_id": "run of sweep/trial_000"}, "its training continues it"


def test_what_happens_is_on_disk_before_the_next_thing(sweep):
    found = searcher(sweep, more=4)
    for name in "abcd":
        found.suggest(name)
    found.on_trial_result("a", scored(1, 0.2))
    found.on_trial_complete("a", scored(9, 0.5, done=True))
    found.on_trial_complete("b", scored(1, 0.1, done=True))
    found.on_trial_complete("c", {"reason": "the loss is not finite", "done": True})
    found.on_trial_result("d", scored(1, 0.3))
    again = Sweep(sweep.folder, sweep.config, sweep.search)
    assert [trial.state for trial in again.trials] == ["complete", "stopped", "failed", "running"]
    assert again.trials[0].reports == [
        {"step": 1, "score": 0.2, "datasets": {"kitti_step": 0.2}},
        {"step": 9, "score": 0.5, "datasets": {"kitti_step": 0.5}},
    ]
    assert again.trials[2].reason == "the loss is not finite"
    assert [text for _, text in found.children.tags] == ["complete at step 9", "stopped at step 1", "failed at step 0"]


def test_a_kill_while_mlflow_is_told_of_an_end_leaves_it_to_be_told_again(sweep):
    def killed(*_):
        raise KeyboardInterrupt

    found = searcher(sweep, more=1)
    found.suggest("a")
    found.children.tag = killed
    with pytest.raises(KeyboardInterrupt):
        found.on_trial_complete("a", scored(9, 0.5, done=True))
    (trial,) = Sweep(sweep.folder, sweep.config, sweep.search).trials
    assert trial.state == "running"


def test_a_restart_feeds_optuna_what_has_ended(sweep):
    found = searcher(sweep, more=4)
    for name in "abcd":
        found.suggest(name)
    found.on_trial_complete("a", scored(9, 0.5, done=True))
    found.on_trial_complete("b", scored(1, 0.1, done=True))
    found.on_trial_complete("c", {"reason": "the loss is not finite", "done": True})
    told = study(Sweep(sweep.folder, sweep.config, sweep.search)).trials
    assert [(trial.state, trial.value, trial.intermediate_values) for trial in told] == [
        (TrialState.COMPLETE, 0.5, {9: 0.5}),
        (TrialState.PRUNED, 0.1, {1: 0.1}),
    ]
    assert told[0].params == REFERENCE
    lived = [trial for trial in found.study.trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    assert [(trial.params, trial.value) for trial in told] == [(trial.params, trial.value) for trial in lived]


def test_a_restart_continues_unfinished_trials_first_and_repeats_their_scores_to_the_scheduler(sweep):
    found = searcher(sweep, more=2)
    found.suggest("a")
    found.suggest("b")
    found.on_trial_result("b", scored(1, 0.3))
    again = Sweep(sweep.folder, sweep.config, sweep.search)
    resumed = searcher(again, waiting=again.trials, more=1)
    assert resumed.suggest("c")["run"].run.name == "trial_000"
    second = resumed.suggest("d")
    assert second["run"].run.name == "trial_001"
    assert second["run"].loss == sweep.run_of(sweep.trials[1]).loss
    assert [report["score"] for report in second["reports"]] == [0.3]
    resumed.on_trial_result("d", scored(1, 0.3))
    assert [report["step"] for report in again.trials[1].reports] == [1], "noted once"
    third = resumed.suggest("e")["run"]
    assert third.run.name == "trial_002"
    assert third.loss.center not in (200.0, second["run"].loss.center)


def test_a_restart_rebuilds_asha_s_rungs(sweep):
    """Five trials in a scheduler that lives through, and in one that is made from their records."""
    lived, asked = asha(sweep), []
    for number, scores in enumerate(((0.5, 0.6), (0.1,), (0.7, 0.8), (0.2,), (0.9, 0.3))):
        trial = Trial(number, dict(REFERENCE), 0, state="complete" if len(scores) > 1 else "stopped")
        live = SimpleNamespace(trial_id=trial.name, config={"run": sweep.run_of(trial)})
        lived.on_trial_add(None, live)
        for step, score in zip((1, 3), scores, strict=False):
            trial.reports.append({"step": step, "score": score, "datasets": {}})
            asked.append(lived.on_trial_result(None, live, scored(step, score)))
        sweep.trials.append(trial)
    assert set(asked) == {"CONTINUE"}, "a verdict is carried out by the run itself"
    rungs = lived._brackets[0]._rungs
    assert rungs == asha(sweep)._brackets[0]._rungs
    assert {milestone: len(found) for milestone, found in rungs} == {1: 5, 3: 3, 9: 0}


def test_a_run_that_is_not_worth_it_is_asked_to_stop(sweep):
    scheduler, controller = asha(sweep), object()
    for number, score in enumerate((0.5, 0.1)):
        run = sweep.run_of(Trial(number, dict(REFERENCE), 0))
        folder = Path(run.run.dir) / run.run.name
        folder.mkdir(parents=True)
        (folder / "attempt").write_text("now")
        live = SimpleNamespace(trial_id=str(number), config={"run": run})
        scheduler.on_trial_add(controller, live)
        assert scheduler.on_trial_result(controller, live, scored(1, score)) == "CONTINUE"
    assert not (sweep.folder / "trial_000/stop").exists()
    assert (sweep.folder / "trial_001/stop").read_text() == "now", "what its workers look for"


def test_a_reference_that_fails_ends_the_sweep(sweep):
    found = searcher(sweep, more=4)
    found.suggest("a")
    found.on_trial_complete("a", {"reason": "the loss is not finite", "done": True})
    assert found.suggest("b") == "FINISHED"


def test_a_sweep_without_a_complete_trial_says_so(sweep):
    sweep.trials = [Trial(0, dict(REFERENCE), 0, state="stopped")]
    with pytest.raises(PostError, match=r"no trial of the sweep in .* reached its last step"):
        sweep.best()


def test_learned_weights_begin_at_the_given_ones_and_end_at_one_over_the_loss():
    """Where the losses stay the same, exp(-s) x loss + s is least at s = log(loss)."""
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=0.05)
    weights = LearnedWeights({"semantic": 1.0, "center": 200.0}, optimizer, torch.device("cpu"))
    assert dict(weights) == pytest.approx({"semantic": 1.0, "center": 200.0})
    means = {"semantic": torch.tensor(0.5), "center": torch.tensor(0.004), "total": torch.tensor(9.0)}
    for _ in range(600):
        weights.learn(means)
        optimizer.step()
    assert dict(weights) == pytest.approx({"semantic": 2.0, "center": 250.0}, rel=0.02)


def test_learned_weights_are_saved_with_the_optimiser(tmp_path):
    def made():
        optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=0.05)
        return optimizer, LearnedWeights({"semantic": 1.0, "center": 200.0}, optimizer, torch.device("cpu"))

    def steps(optimizer, weights, count):
        for _ in range(count):
            weights.learn({"semantic": torch.tensor(0.5), "center": torch.tensor(0.004)})
            optimizer.step()
        return dict(weights)

    optimizer, weights = made()
    steps(optimizer, weights, 3)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    whole = steps(optimizer, weights, 4)
    optimizer, weights = made()
    optimizer.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    weights.restore()
    assert steps(optimizer, weights, 4) == whole, "bit by bit"


def test_learned_weights_need_a_start():
    assert load_config(None, ["loss.weighting=learned"]).loss.weighting == "learned"
    with pytest.raises(ConfigError, match=r"loss.offset must be > 0 where loss.weighting is learned"):
        load_config(None, ["loss.weighting=learned", "loss.offset=0"])


def tune(shards, runs, log):
    """A sweep of tiny trials in a session of its own."""
    known = (f"data.root={shards}", f"run.dir={runs}", "run.name=sweep", "train.workers=1", "train.checkpoint_every=8")
    search = ("search.trials=4", "search.repeats=1", "search.random=2", "search.reduction=2")
    command = [sys.executable, str(ROOT / "pipelines/tune.py"), *SETTINGS, *known, *search]
    with log.open("a") as output:
        return subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)


@pytest.mark.slow
def test_a_killed_sweep_goes_on_with_what_it_had(toy_shards, tmp_path):
    """SIGKILL of the driver once a trial has ended and another is on its way."""
    runs, log = tmp_path / "runs", tmp_path / "log"
    file = runs / "sweep/trials.json"

    def trials():
        return json.loads(file.read_text())["trials"] if file.exists() else []

    process = tune(toy_shards, runs, log)
    try:
        wait_until(lambda: len({t["state"] == "running" for t in trials()}) == 2, process, log, 900)  # some, not all
        process.kill()
        process.wait()
        before = {t["number"]: t for t in trials()}
        process = tune(toy_shards, runs, log)
        assert process.wait(1200) == 0, log.read_text()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    after = trials()
    assert all(t["state"] in ("complete", "stopped") for t in after)
    firsts = {t["number"]: t for t in after if not t["repeats"]}
    assert sorted(firsts) == [0, 1, 2, 3]
    for number, t in before.items():
        if t["state"] != "running":
            assert firsts[number] == t, "kept, not trained again"
        assert firsts[number]["weights"] == t["weights"]
        assert t["run_id"] in ("", firsts[number]["run_id"]), "noted before its MLflow run is begun"
        assert firsts[number]["reports"][: len(t["reports"])] == t["reports"]
    client = MlflowClient(f"sqlite:///{runs}/mlflow.db")
    parent = json.loads(file.read_text())["run_id"]
    assert client.get_run(parent).info.status == "FINISHED"
    names = {entry.path for entry in client.list_artifacts(parent)}
    assert names >= {"trials.csv", "best.yaml", "verdict.json", "parallel.png", "sensitivity.png", "pareto.png"}
    for t in after:
        run = client.get_run(t["run_id"])
        assert run.info.status == "FINISHED"
        assert run.data.tags[PARENT] == parent
        assert run.data.tags["sweep.end"] == f"{t['state']} at step {t['reports'][-1]['step']}"
        assert run.data.metrics["val/mean/score"] == pytest.approx(t["reports"][-1]["score"])
    command = [sys.executable, str(ROOT / "pipelines/train.py"), "--config", runs / "sweep/best.yaml", "--print-config"]
    assert "run.name: sweep_best" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
