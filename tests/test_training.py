"""Training end to end on an embedded Ray: resumed, moved to another world size, killed; always the same run."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from post_platform.config import load_config
from post_platform.errors import ConfigError, DataError, PostError
from post_platform.training import checkpoint, ledger
from post_platform.training.job import plan_of
from post_platform.training.launch import prepare, train
from post_platform.training.splits import splits_of

ROOT = Path(__file__).resolve().parent.parent
DATASETS = ("coco_panoptic", "kitti_mots", "kitti_step")
TINY = (
    "data.crop=[32,64]",
    "model.backbone=small",
    "train.global_batch=6",
    "train.checkpoint_every=2",
    "train.log_every=1",
    "train.workers=2",
    "eval.every=0",
    "eval.overlays=1",
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


def settings(shards, runs, name, *overrides):
    return [*TINY, f"data.root={shards}", f"run.dir={runs}", f"run.name={name}", *overrides]


def go(shards, runs, name, *overrides):
    return train(load_config(None, settings(shards, runs, name, *overrides)))


@pytest.fixture(scope="module")
def whole(toy_shards, runs):
    """A run of seven steps that nothing interrupts."""
    return go(toy_shards, runs, "whole", "train.steps=7")


@pytest.fixture(scope="module")
def resumed(toy_shards, runs):
    """Four steps on two workers, then, run again, up to seven on one."""
    first = go(toy_shards, runs, "resumed", "train.steps=4")
    assert checkpoint.read_state(first.checkpoint)["step"] == 4
    assert json.loads((first.folder / "scores.json").read_text())["step"] == 4
    return go(toy_shards, runs, "resumed", "train.steps=7", "train.workers=1")


def mlflow_run(outcome):
    return MlflowClient(outcome.mlflow_uri).get_run(outcome.mlflow_run_id)


def steps_of(outcome, metric):
    """The steps at which a metric is stored, in the order they were sent, and its values."""
    history = MlflowClient(outcome.mlflow_uri).get_metric_history(outcome.mlflow_run_id, metric)
    return [entry.step for entry in history], [entry.value for entry in history]


def test_the_ledger_of_a_resumed_run_is_that_of_an_uninterrupted_one(whole, resumed):
    lines = ledger.read(whole.folder / "ledger.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 7]
    assert [position for line in lines for position in line["positions"]] == list(range(42))
    assert all(line["counts"] == dict.fromkeys(DATASETS, 2) for line in lines)
    assert (resumed.folder / "ledger.jsonl").read_text() == (whole.folder / "ledger.jsonl").read_text()
    state = checkpoint.read_state(resumed.checkpoint)
    assert (state["step"], state["position"], state["ledger"]) == (7, 42, lines[-1]["sha256"])


def test_a_resumed_run_is_one_mlflow_run_with_each_step_once(resumed, toy_shards, runs):
    run = mlflow_run(resumed)
    assert run.info.status == "FINISHED"
    for name in ("total", "semantic", "center", "offset", "prev_offset"):
        assert sorted(steps_of(resumed, f"train/loss/{name}")[0]) == [1, 2, 3, 4, 5, 6, 7]
    assert sorted(steps_of(resumed, "val/mean/score")[0]) == [4, 7]
    assert sorted(steps_of(resumed, "data/kitti_mots/share")[0]) == [2, 4, 6, 7]
    named = [found for found in MlflowClient(resumed.mlflow_uri).search_runs([run.info.experiment_id])]
    assert sum(found.info.run_name == "resumed" for found in named) == 1


def test_what_mlflow_holds_of_a_run(whole, toy_shards):
    run, client = mlflow_run(whole), MlflowClient(whole.mlflow_uri)
    assert run.data.params["train.steps"] == "7"
    assert run.data.params["data.crop"] == "[32, 64]"
    assert "loss.prev_offset" in run.data.params
    for dataset in DATASETS:
        assert run.data.metrics[f"data/{dataset}/share"] == pytest.approx(1 / 3)
        assert f"val/{dataset}/PQ" in run.data.metrics
    assert 0 <= run.data.metrics["val/kitti_step/STQ"] <= 1
    assert {"val/mean/score", "time/frames_per_s", "time/data_wait", "train/lr"} <= set(run.data.metrics)
    inputs = {(entry.dataset.name, entry.tags[0].value) for entry in run.inputs.dataset_inputs}
    assert inputs == {(f"{name}/{split}", split) for name in DATASETS for split in ("train", "val")}
    files = {file.path for file in client.list_artifacts(whole.mlflow_run_id)}
    assert files == {"config.yaml", "images"}
    images = [Path(file.path).name for file in client.list_artifacts(whole.mlflow_run_id, "images")]
    assert {name for name in DATASETS if any(image.startswith(name) for image in images)} == set(DATASETS)
    config = Path(client.download_artifacts(whole.mlflow_run_id, "config.yaml"))
    assert load_config(config).data.root == str(toy_shards)


def test_scores_are_complete_and_the_checkpoint_is_whole(whole):
    assert set(whole.scores["datasets"]) == set(DATASETS)
    assert whole.scores["step"] == 7
    checkpoint.verify(whole.checkpoint)
    assert {path.name for path in whole.checkpoint.iterdir()} >= {"model.safetensors", "model.json", "optimizer.pt"}
    losses = steps_of(whole, "train/loss/total")[1]
    assert np.isfinite(losses).all()


def test_a_finished_run_says_so_and_stays_finished(whole, toy_shards, runs, caplog):
    before = (whole.folder / "ledger.jsonl").read_bytes()
    with caplog.at_level(logging.INFO, "post_platform"):
        again = go(toy_shards, runs, "whole", "train.steps=7", "train.workers=1")
    assert "run whole is already finished at step 7" in caplog.text
    assert again == whole
    assert mlflow_run(again).info.status == "FINISHED"
    assert (whole.folder / "ledger.jsonl").read_bytes() == before


def test_a_changed_configuration_is_refused_by_key_and_leaves_the_run_alone(whole, toy_shards, runs):
    with pytest.raises(ConfigError, match=r"with another configuration: optim.lr: 0.001 -> 0.1$") as caught:
        go(toy_shards, runs, "whole", "train.steps=9", "optim.lr=0.1")
    assert caught.value.hint == "give it another name: run.name=<new name>"
    assert mlflow_run(whole).info.status == "FINISHED"
    assert load_config(whole.folder / "config.yaml").optim.lr == 0.001


def test_other_shards_under_the_same_root_are_refused(whole, toy_shards, runs, tmp_path):
    changed = settings(toy_shards, runs, "whole", "train.steps=9", "data.train_split=val")
    config = load_config(None, changed)
    same_keys = load_config(None, settings(toy_shards, runs, "whole", "train.steps=9"))
    stored = checkpoint.read_state(whole.checkpoint)["plan"]
    assert stored == plan_of(same_keys, splits_of(str(toy_shards), None, "train")).digest
    assert stored != plan_of(config, splits_of(str(toy_shards), None, "val")).digest
    folder = Path(shutil.copytree(runs / "whole", tmp_path / "whole"))
    state = next(folder.glob("checkpoints/step_00000007/state.json"))
    state.write_text(state.read_text().replace(stored, "0" * 64))
    manifest = state.parent / "MANIFEST.json"
    files = json.loads(manifest.read_text())
    files["files"]["state.json"] = checkpoint.sha256(state)
    manifest.write_text(json.dumps(files))
    (folder / "config.yaml").write_text((folder / "config.yaml").read_text().replace(str(runs), str(tmp_path)))
    with pytest.raises(ConfigError, match=r"^run 'whole' exists .* was trained on other shards than those under"):
        prepare(load_config(None, settings(toy_shards, tmp_path, "whole", "train.steps=9")))


def test_a_run_stopped_before_any_validation_names_the_next_command(whole, toy_shards, runs, tmp_path):
    folder = Path(shutil.copytree(runs / "whole", tmp_path / "whole"))
    (folder / "scores.json").unlink()
    (folder / "run.json").unlink()
    (folder / "config.yaml").write_text((folder / "config.yaml").read_text().replace(str(runs), str(tmp_path)))
    with pytest.raises(PostError, match=r"has trained 7 steps, not less than train.steps=3") as caught:
        go(toy_shards, tmp_path, "whole", "train.steps=3")
    assert f"pipelines/evaluate.py --checkpoint {folder}/checkpoints/step_00000007" in caught.value.hint


def test_a_damaged_checkpoint_is_named_before_anything_starts(whole, toy_shards, runs, tmp_path):
    folder = Path(shutil.copytree(runs / "whole", tmp_path / "whole"))
    newest = checkpoint.latest(folder / "checkpoints")
    (newest / "optimizer.pt").write_bytes(b"half")
    with pytest.raises(DataError, match=r"step_00000007: optimizer.pt is damaged") as caught:
        go(toy_shards, tmp_path, "whole", "train.steps=9")
    assert caught.value.hint.endswith(f"rm -r {newest}")


def test_a_mistake_that_only_the_second_rank_meets_comes_back_as_itself_without_a_timeout(toy_shards, runs, tmp_path):
    shards = Path(shutil.copytree(toy_shards, tmp_path / "shards"))
    config = load_config(None, settings(shards, runs, "bad", "train.steps=5", "data.max_bad_samples=0"))
    rows = plan_of(config, splits_of(str(shards), None, "train")).rows(np.arange(30)).to_pylist()
    ranges = [{(r["dataset"], r[f"{when}_offset"]) for when in ("now", "prev")} for r in rows]
    read_by_first = set().union(*(ranges[p] for p in range(30) if p % 6 < 3))
    victim = next(r for r in rows if r["position"] % 6 >= 3 and (r["dataset"], r["now_offset"]) not in read_by_first)
    name = DATASETS[victim["dataset"]]
    tar = shards / name / "train" / victim["now_shard"]
    data = bytearray(tar.read_bytes())
    data[victim["now_offset"] + 700] ^= 255
    tar.write_bytes(data)
    started = time.monotonic()
    with pytest.raises(DataError) as caught:
        train(config)
    assert time.monotonic() - started < 600  # not the half hour after which a collective gives up
    assert str(caught.value).startswith("more than 0 samples could not be read; the last: ")
    assert f"{name}/train/000000.tar, sample " in str(caught.value)
    assert caught.value.hint == f"see what is damaged: python pipelines/check.py {shards}/{name}"
    record = json.loads((runs / "bad" / "run.json").read_text())
    assert MlflowClient(record["mlflow_uri"]).get_run(record["mlflow_run_id"]).info.status == "FAILED"


def training_workers():
    """Process ids of the training workers that this process started."""
    parents, found = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[folder.name] = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            if "RayTrainWorker" in (folder / "cmdline").read_text():
                found.append(folder.name)
        except OSError:
            continue

    def ours(process):
        while process in parents and process != str(os.getpid()):
            process = parents[process]
        return process == str(os.getpid())

    return [int(process) for process in found if ours(process)]


@pytest.mark.slow
def test_a_worker_that_is_killed_is_one_line_that_says_how_to_go_on(toy_shards, runs):
    def kill():
        while not (runs / "worker/checkpoints/step_00000002").exists() and threading.main_thread().is_alive():
            time.sleep(0.05)
        os.kill(training_workers()[0], signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    with pytest.raises(
        PostError, match=r"^a training worker of run 'worker' was killed, or ran out of memory"
    ) as caught:
        go(toy_shards, runs, "worker", "train.steps=100000", "train.checkpoint_every=2")
    killer.join()
    found = checkpoint.read_state(checkpoint.latest(runs / "worker/checkpoints"))["step"]
    assert caught.value.hint == f"the same command continues from step {found}"


def test_a_killed_run_continues_as_if_nothing_had_happened(whole, toy_shards, runs):
    command = [sys.executable, str(ROOT / "pipelines/train.py"), *settings(toy_shards, runs, "killed", "train.steps=7")]
    output = (runs / "killed.log").open("w")
    process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    first = runs / "killed/checkpoints/step_00000002/MANIFEST.json"
    deadline = time.monotonic() + 600
    while not first.exists():
        assert process.poll() is None, (runs / "killed.log").read_text()
        assert time.monotonic() < deadline, (runs / "killed.log").read_text()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert checkpoint.read_state(checkpoint.latest(runs / "killed/checkpoints"))["step"] < 7
    outcome = go(toy_shards, runs, "killed", "train.steps=7")
    assert (outcome.folder / "ledger.jsonl").read_text() == (whole.folder / "ledger.jsonl").read_text()
    steps, losses = steps_of(outcome, "train/loss/total")
    assert sorted(steps) == [1, 2, 3, 4, 5, 6, 7]
    expected = dict(zip(*steps_of(whole, "train/loss/total"), strict=True))
    assert dict(zip(steps, losses, strict=True)) == pytest.approx(expected, rel=1e-3)
    assert mlflow_run(outcome).info.status == "FINISHED"
