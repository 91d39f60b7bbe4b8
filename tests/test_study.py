"""The study: what it refuses, what it trains (by hand for three datasets), tables by hand, and one that is killed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from killing import SETTINGS, wait_until
from matplotlib.collections import PathCollection
from mlflow import MlflowClient
from PIL import Image

from post_platform.errors import ConfigError
from post_platform.experiment_sweep import PARENT
from post_platform.study import Runs
from post_platform.study_config import load_study, refuse_changes, store
from post_platform.study_plan import PARTS, Recipe, plan, recipes, wanted
from post_platform.study_report import Line, as_json, cells, draw, line, markdown, tables
from post_platform.study_state import Study

ROOT = Path(__file__).resolve().parent.parent
THREE = ("kitti_mots", "kitti_step", "coco_panoptic")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("study.part=[joint]", "unknown config key 'study.part'; did you mean study.parts?"),
        ("study.parts=[balanc]", "study.parts: no part 'balanc'; did you mean balance?"),
        ("study.parts=[]", "study.parts: must name at least one of leave_one_out, joint"),
        ("study.seeds=0", "study.seeds: must be >= 1, got 0"),
        ("study.seeds={kitti_step: 3}", "by design no dataset has a number of its own"),
        ("study.kitti_mots=2", "by design no dataset has a number of its own"),
        ("data.alpha=1", "data.alpha is set, but the study varies it (part balance)"),
        ("loss.unlabelled=ignore", "loss.unlabelled is set, but the study varies it (part labels)"),
        ("eval.tracking=iou", "eval.tracking is set, but the study varies it (part tracking)"),
        ("model.branches=[semantic,center,offset]", "model.branches: a study tracks by the branch prev_offset"),
        ("run.dir=s3://bucket/runs", "run.dir: a study needs a folder"),
        ("mlflow.uri=file:runs", "mlflow.uri: must be http"),
    ],
)
def test_what_cannot_be_studied_is_refused(override, message):
    with pytest.raises(ConfigError) as caught:
        load_study(None, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_toy_study_is_the_quickstart_s_recipe_with_fewer_steps(tmp_path):
    study = load_study(ROOT / "pipelines/configs/toystudy.yaml")
    assert study[1].parts == tuple(PARTS)
    stored = tmp_path / "study.yaml"
    store(stored, *study)
    assert load_study(stored) == study


def test_a_resumed_study_may_ask_more_of_the_same_runs_and_nothing_else(tmp_path):
    stored = tmp_path / "study.yaml"
    store(stored, *load_study(None, ["study.seeds=1", "study.parts=[joint]"]))
    refuse_changes(stored, *load_study(None, ["study.seeds=3", "train.workers=1"]))
    with pytest.raises(
        ConfigError, match=r"^study 'study' exists \(.*: optim.lr: 0.001 -> 0.5; train.steps: 60000 -> 9$"
    ):
        refuse_changes(stored, *load_study(None, ["train.steps=9", "optim.lr=0.5"]))


def test_what_a_mixture_cannot_answer_is_refused():
    with pytest.raises(ConfigError, match="two datasets or more, got kitti_mots"):
        plan(PARTS, ["kitti_mots"], ["kitti_mots"])
    with pytest.raises(
        ConfigError, match=r"^study.parts: labels needs a partly labelled dataset \(kitti_mots, mots20, "
    ):
        plan(["labels"], ["kitti_step", "coco_panoptic"], ["kitti_step"])
    with pytest.raises(ConfigError, match=r"^study.parts: tracking needs a dataset of videos .*, got coco_panoptic$"):
        plan(["tracking"], THREE, ["coco_panoptic"])


def test_the_runs_for_three_datasets_by_hand():
    parts = plan(tuple(PARTS), THREE, THREE)
    a, b, c = THREE
    found = {recipe.name(THREE): recipe for recipe in recipes(parts)}
    assert found == {
        "joint": Recipe((a, b, c)),
        "without_kitti_mots": Recipe((b, c)),
        "without_kitti_step": Recipe((a, c)),
        "without_coco_panoptic": Recipe((a, b)),
        "only_kitti_mots": Recipe((a,)),
        "only_kitti_step": Recipe((b,)),
        "only_coco_panoptic": Recipe((c,)),
        "joint_proportional": Recipe((a, b, c), alpha=1.0),
        "joint_ignore": Recipe((a, b, c), unlabelled="ignore"),
    }
    assert list(found)[:2] == ["joint", "without_kitti_mots"], "what all tables need comes first"
    assert wanted(parts, found["joint"]) == {"prev_offset": THREE, "iou": (a, b)}
    assert wanted(parts, found["without_kitti_step"]) == {"prev_offset": (b,)}
    assert wanted(parts, found["only_kitti_step"]) == {"prev_offset": (b,)}
    assert wanted(parts, found["joint_ignore"]) == {"prev_offset": THREE}


def test_each_part_s_rows_by_hand():
    a, b, c = THREE
    everything = Recipe(THREE)
    shown = {
        part.name: [(row.dataset, row.metric, row.left.recipe, row.right.recipe) for row in part.rows]
        for part in plan(tuple(PARTS), THREE, THREE)
    }
    heads = [(a, "sMOTSA"), (b, "STQ"), (c, "PQ")]
    assert shown["leave_one_out"] == [
        (*head, everything, Recipe(rest)) for head, rest in zip(heads, [(b, c), (a, c), (a, b)], strict=True)
    ]
    assert shown["joint"] == [(*head, everything, Recipe((head[0],))) for head in heads]
    assert shown["balance"] == [(*head, everything, Recipe(THREE, alpha=1.0)) for head in heads]
    assert shown["labels"] == [(*head, everything, Recipe(THREE, unlabelled="ignore")) for head in heads]
    assert shown["tracking"] == [
        (name, metric, everything, everything)
        for name, metrics in ((a, ("sMOTSA", "AssA", "IDS")), (b, ("STQ", "AssA", "IDS")))
        for metric in metrics
    ]


def test_of_two_datasets_without_one_is_the_other_alone():
    parts = plan(["leave_one_out", "joint"], THREE[:2], THREE[:2])
    assert [recipe.name(THREE[:2]) for recipe in recipes(parts)] == ["joint", "only_kitti_step", "only_kitti_mots"]


def test_a_dataset_that_is_not_scored_is_trained_on_and_never_left_out():
    parts = plan(["leave_one_out"], THREE, THREE[1:])
    assert [recipe.name(THREE) for recipe in recipes(parts)] == ["joint", "without_kitti_step", "without_coco_panoptic"]


def study(folder, *overrides, parts=tuple(PARTS), names=THREE, digests=None):
    config, settings = load_study(None, [f"run.dir={folder}", "train.steps=9", *overrides])
    return Study(Path(folder), config, settings.seeds, plan(parts, names, names), digests or {"kitti_mots/val": "d1"})


def test_the_configuration_of_a_run_differs_in_its_recipe_alone(tmp_path):
    found = study(tmp_path, "seed=5", "study.seeds=2")
    assert len(found.runs) == 18
    run = found.known["joint_ignore_seed_6"]
    config = found.config_of(run)
    assert (config.data.datasets, config.data.alpha) == (THREE, 0.0)
    assert (config.loss.unlabelled, config.seed, config.run.name) == ("ignore", 6, run.name)
    assert config.run.dir == str(tmp_path)
    assert found.config_of(found.known["joint_proportional_seed_5"]).data.alpha == 1.0
    assert found.config_of(found.known["only_kitti_step_seed_5"]).data.datasets == ("kitti_step",)
    same = config.model_copy(update={"data": found.config.data, "loss": found.config.loss, "run": found.config.run,
                                     "seed": 5})  # fmt: skip
    assert same == found.config


def test_what_is_done_is_on_disk_and_more_may_be_asked(tmp_path):
    first = study(tmp_path, "study.seeds=1", parts=["joint"])
    assert [run.title for run in first.runs] == ["joint", "only_kitti_mots", "only_kitti_step", "only_coco_panoptic"]
    first.known["joint_seed_0"].state = "trained"
    first.known["joint_seed_0"].scores = {"prev_offset": {"kitti_step": {"STQ": 0.5}}}
    first.save()
    more = study(tmp_path, "study.seeds=2", parts=["balance"])
    assert [run.name for run in more.runs] == [
        "joint_seed_0", "joint_proportional_seed_0", "joint_seed_1", "joint_proportional_seed_1",
    ]  # fmt: skip
    assert more.runs[0] == first.known["joint_seed_0"]
    more.save()
    assert study(tmp_path, "study.seeds=1", parts=["joint"]).runs == first.runs, "nothing that was known is lost"
    with pytest.raises(ConfigError, match=r"exists \(.*\) with other shards of kitti_mots/val$"):
        study(tmp_path, digests={"kitti_mots/val": "d2"})


class NoChildren:
    """A store that takes everything."""

    def __init__(self):
        self.parent, self.begun = SimpleNamespace(uri="nowhere"), []

    def begin(self, name, tags):
        self.begun.append(name)
        return f"run of {name}"


def test_a_restart_hands_out_what_is_not_trained_and_begins_no_run_twice(tmp_path):
    first = Runs(study(tmp_path, "study.seeds=1", parts=["joint"]), NoChildren(), lambda run: None)
    names = [first.suggest(letter)["run"].run.name for letter in "abcd"]
    assert names == ["joint_seed_0", "only_kitti_mots_seed_0", "only_kitti_step_seed_0", "only_coco_panoptic_seed_0"]
    assert first.suggest("e") == "FINISHED"
    first.on_trial_complete("a", {"step": 9, "score": 0.5, "done": True})
    first.on_trial_complete("b", {"reason": "the loss is not finite", "done": True})
    first.on_trial_complete("c", {"step": 5, "score": 0.5, "done": True})
    first.on_trial_complete("d", error=True)
    again = study(tmp_path, "study.seeds=1", parts=["joint"])
    assert [(run.state, run.reason) for run in again.runs] == [
        ("trained", ""), ("failed", "the loss is not finite"), ("waiting", ""), ("waiting", ""),
    ]  # fmt: skip
    second = Runs(again, NoChildren(), lambda run: None)
    assert [second.suggest(letter)["run"].run.name for letter in "ab"] == names[2:]
    assert second.children.begun == [], "the runs of the killed process are continued"
    stored = json.loads((tmp_path / names[3] / "run.json").read_text())
    assert stored == {"mlflow_uri": "nowhere", "mlflow_run_id": f"run of study/{names[3]}"}


def scored(found, values):
    """Note scores: {title: {dataset: (of seed 0, of seed 1, ...)}}, of the headline unless told."""
    heads = {"kitti_mots": "sMOTSA", "kitti_step": "STQ", "coco_panoptic": "PQ"}
    for title, datasets in values.items():
        for dataset, by_seed in datasets.items():
            for seed, value in enumerate(by_seed):
                run = found.known[f"{title}_seed_{seed}"]
                run.state = "trained"
                run.scores.setdefault("prev_offset", {})[dataset] = {heads[dataset]: value}


def test_a_table_by_hand(tmp_path):
    found = study(tmp_path, "study.seeds=2", parts=["leave_one_out"])
    scored(found, {
        "joint": {"kitti_mots": (0.60, 0.64), "kitti_step": (0.50, 0.50), "coco_panoptic": (0.40, 0.42)},
        "without_kitti_mots": {"kitti_mots": (0.20, 0.20)},
        "without_kitti_step": {"kitti_step": (0.50, 0.54)},
        "without_coco_panoptic": {"coco_panoptic": (0.10, None)},
    })  # fmt: skip
    (only,) = tables(found)
    mots, step, coco, mean = only.lines
    assert (mots.left, mots.right) == ((0.60, 0.64), (0.20, 0.20))
    assert mots.difference == pytest.approx(0.42)
    noise = (0.0008 / 2) ** 0.5  # squares 0.02^2 x 2 and 0, two degrees of freedom
    assert mots.interval == pytest.approx(4.302653 * noise, rel=1e-5)  # x sqrt(1/2 + 1/2)
    assert mots.verdict == "left"
    assert cells(mots) == ["kitti_mots", "sMOTSA", "0.620 ± 0.028", "0.200 ± 0.000", "**+0.420**", "+0.334 to +0.506"]
    assert step.difference == pytest.approx(-0.02)
    assert step.verdict == "", "within what seeds alone do"
    assert cells(coco)[2:5] == ["0.410 ± 0.014", "0.100", "**+0.310**"], "one seed is undefined"
    assert coco.interval == pytest.approx(12.7062 * 0.0002**0.5 * 1.5**0.5, rel=1e-4)
    assert mean.left == pytest.approx((0.50, 0.52))
    assert mean.right == (pytest.approx((0.20 + 0.50 + 0.10) / 3), None), "a mean over other datasets is none"


def test_trackers_are_compared_network_by_network():
    """Seeds differ by 0.3, trackers by 0.1 within each: the differences 0.1 and 0.12 are what counts."""
    paired = line("kitti_mots", "sMOTSA", (0.2, 0.5), (0.1, 0.38), True)
    assert paired.difference == pytest.approx(0.11)
    assert paired.interval == pytest.approx(12.7062 * 0.0002**0.5 / 2**0.5, rel=1e-4)
    apart = line("kitti_mots", "sMOTSA", (0.2, 0.5), (0.1, 0.38), False)
    assert apart.difference == pytest.approx(0.11)
    assert apart.interval > 3 * paired.interval
    assert line("kitti_mots", "IDS", (3.0, 4.0), (9.0, 10.0), True).verdict == "left", "fewer switches are better"


def test_what_is_not_known_is_said_and_failures_are_named(tmp_path):
    found = study(tmp_path, "study.seeds=1", parts=["joint"])
    scored(found, {"joint": {"kitti_mots": (0.5,)}, "only_kitti_mots": {"kitti_mots": (0.25,)}})
    run = found.known["only_kitti_step_seed_0"]
    run.state, run.reason = "failed", "step 7: the loss is not finite"
    shown = markdown(tables(found), found)
    assert "| kitti_mots | sMOTSA | 0.500 | 0.250 | +0.250 | not known |" in shown
    assert "| kitti_step | STQ | - | - | - | not known |" in shown
    assert "- only_kitti_step_seed_0 failed: step 7: the loss is not finite" in shown
    assert "4 runs of 9 steps, 1 seed of each recipe" in shown
    rows = as_json(found)["parts"]["joint"]["rows"]
    assert rows[0] == {
        "dataset": "kitti_mots", "metric": "sMOTSA", "left": (0.5,), "right": (0.25,),
        "difference": 0.25, "interval": None, "better": None,
    }  # fmt: skip
    json.dumps(as_json(found), allow_nan=False)


def test_no_pair_and_no_spread_are_no_difference_and_no_interval():
    assert line("x", "PQ", (None, 0.5), (0.5, None), True) == Line("x", "PQ", (None, 0.5), (0.5, None), None, None)
    assert line("x", "PQ", (0.5,), (0.25,), True) == Line("x", "PQ", (0.5,), (0.25,), 0.25, None)


def test_the_figure_holds_every_seed(tmp_path):
    found = study(tmp_path, "study.seeds=2", parts=["joint", "balance", "tracking"])
    scored(found, {title: dict.fromkeys(THREE, (0.25, 0.5)) for title in ("joint", "joint_proportional")})
    figure = draw(tables(found))
    figure.savefig(tmp_path / "study.png")
    panels = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_title() for axis in panels] == [part.question for part in found.parts]
    dots = [dots.get_offsets().tolist() for dots in panels[1].collections if isinstance(dots, PathCollection)]
    half = len(dots) // 2
    for row, (left, right) in enumerate(zip(dots[:half], dots[half:], strict=True)):
        assert [x for x, _ in left] == [x for x, _ in right] == [0.25, 0.5], "a dot per seed"
        assert all(y < row for _, y in left)
        assert all(y > row for _, y in right)


def start(shards, runs, log):
    """A study of tiny runs in a session of its own."""
    known = (f"data.root={shards}", f"run.dir={runs}", "run.name=study", "train.workers=1", "train.checkpoint_every=8")
    short = ("train.steps=8", "eval.every=0", "study.seeds=2", "study.parts=[joint,tracking]")
    named = ("data.datasets=[kitti_mots,kitti_step]", "--json", str(runs.parent / "study.json"))
    command = [sys.executable, str(ROOT / "pipelines/study.py"), *SETTINGS, *known, *short, *named]
    with log.open("a") as output:
        return subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)


@pytest.mark.slow
def test_a_killed_study_goes_on_with_what_it_had(toy_shards, tmp_path):
    """SIGKILL of the driver once a run is trained and others are on their way; then its tables, pictures and runs."""
    runs, log = tmp_path / "runs", tmp_path / "log"
    file = runs / "study/study.json"

    def known():
        return {run["name"]: run for run in json.loads(file.read_text())["runs"]} if file.exists() else {}

    process = start(toy_shards, runs, log)
    try:
        wait_until(lambda: any(run["state"] == "trained" for run in known().values()), process, log, 900)
        process.kill()
        process.wait()
        before = known()
        process = start(toy_shards, runs, log)
        assert process.wait(1800) == 0, log.read_text()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    after = known()
    names = [f"{title}_seed_{seed}" for seed in (0, 1) for title in ("joint", "only_kitti_mots", "only_kitti_step")]
    assert list(after) == names
    assert {run["state"] for run in after.values()} == {"trained"}
    for name, run in before.items():
        if run["state"] == "trained":
            assert after[name] | {"scores": {}} == run, "kept, not trained again"
        assert run["run_id"] in ("", after[name]["run_id"])
    assert {way: sorted(found) for way, found in after["joint_seed_1"]["scores"].items()} == {
        "prev_offset": ["kitti_mots", "kitti_step"],
        "iou": ["kitti_mots", "kitti_step"],
    }
    assert list(after["only_kitti_step_seed_0"]["scores"]["prev_offset"]) == ["kitti_step"]

    found = json.loads((tmp_path / "study.json").read_text())
    row = found["parts"]["joint"]["rows"][1]
    assert (row["dataset"], row["metric"]) == ("kitti_step", "STQ")
    sides = [[after[f"{title}_seed_{seed}"]["scores"]["prev_offset"]["kitti_step"]["STQ"] for seed in (0, 1)]
             for title in ("joint", "only_kitti_step")]  # fmt: skip
    assert [row["left"], row["right"]] == sides
    assert "| kitti_step | STQ |" in (runs / "study/tables.md").read_text()

    client = MlflowClient(f"sqlite:///{runs}/mlflow.db")
    parent = client.get_run(json.loads(file.read_text())["run_id"])
    assert (parent.info.status, parent.info.run_name) == ("FINISHED", "study")
    stored = {entry.path for entry in client.list_artifacts(parent.info.run_id)}
    assert stored >= {"study.yaml", "tables.md", "tables.json", "study.png", "joint.png", "tracking.png"}
    for run in after.values():
        child = client.get_run(run["run_id"])
        assert (child.info.status, child.data.tags[PARENT]) == ("FINISHED", parent.info.run_id)
        for way, datasets in run["scores"].items():
            for name, scores in datasets.items():
                assert child.data.metrics[f"test/{way}/{name}/PQ"] == scores["PQ"]
    with Image.open(runs / "study/tracking.png") as picture:
        assert picture.width > 4 * 480
        assert picture.height > 4 * 240, "two datasets, two frames each"
