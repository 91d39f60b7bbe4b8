"""Training end to end on an embedded Ray: resumed, moved to another world size, killed; always the same run."""

import hashlib
import json
import logging
import os
import re
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

from post_platform.config import load_config
from post_platform.errors import ConfigError, DataError, PostError
from post_platform.shards.index import encode_index
from post_platform.training import checkpoint, ledger, vocabulary
from post_platform.training.doctor import checkpoint_bytes
from post_platform.training.job import plan_of
from post_platform.training.launch import prepare, train
from post_platform.training.splits import splits_of

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
    assert files == {"config.yaml", "images", "ledger.jsonl", "mixture.png", "scores", "timelines"}
    stored = Path(client.download_artifacts(whole.mlflow_run_id, "ledger.jsonl"))
    assert stored.read_bytes() == (whole.folder / "ledger.jsonl").read_bytes()
    images = [Path(file.path).name for file in client.list_artifacts(whole.mlflow_run_id, "images")]
    assert {name for name in DATASETS if any(image.startswith(name) for image in images)} == set(DATASETS)
    report = pq.read_table(client.download_artifacts(whole.mlflow_run_id, "scores/step_00000007.parquet")).to_pylist()
    told = {(row["dataset"], row["metric"]): row["value"] for row in report if not row["sequence"] + row["class"]}
    assert told["kitti_step", "STQ"] == run.data.metrics["val/kitti_step/STQ"]
    assert {row["sequence"] for row in report if row["dataset"] == "kitti_step"} == {"", "0002", "0006"}
    assert Path(client.download_artifacts(whole.mlflow_run_id, "scores/step_00000007.csv")).read_text().count("\n") > 9
    timelines = client.download_artifacts(whole.mlflow_run_id, "timelines/step_00000007")
    drawn = {str(path.relative_to(timelines)) for path in Path(timelines).rglob("*.png")}
    assert drawn == {f"{name}/{sequence}.png" for name in DATASETS[1:] for sequence in ("0002", "0006")}
    config = Path(client.download_artifacts(whole.mlflow_run_id, "config.yaml"))
    assert load_config(config).data.root == str(toy_shards)


def test_scores_are_complete_and_the_checkpoint_is_whole(whole):
    assert set(whole.scores["datasets"]) == set(DATASETS)
    assert whole.scores["step"] == 7
    checkpoint.verify(whole.checkpoint)
    names = {path.name for path in whole.checkpoint.iterdir()}
    assert names >= {"model.safetensors", "model.json", "optimizer.pt", "ledger.jsonl"}
    losses = steps_of(whole, "train/loss/total")[1]
    assert np.isfinite(losses).all()


def test_the_doctor_knows_the_size_of_a_checkpoint(whole, toy_shards, runs):
    classes = json.loads((whole.checkpoint / "model.json").read_text())["arguments"]["num_classes"]
    expected = checkpoint_bytes(load_config(None, settings(toy_shards, runs, "whole")), classes)
    assert sum(file.stat().st_size for file in whole.checkpoint.iterdir()) == pytest.approx(expected, rel=0.02)


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


@pytest.fixture
def copied(whole, runs, tmp_path, toy_shards):
    """The finished run in a folder of its own, on a copy of its shards."""
    folder = Path(shutil.copytree(runs / "whole", tmp_path / "whole"))
    root = Path(shutil.copytree(toy_shards, tmp_path / "shards"))
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace(str(runs), str(tmp_path)).replace(str(toy_shards), str(root)))
    return root


def refused(root, tmp_path, *overrides):
    with pytest.raises(ConfigError) as caught:
        prepare(load_config(None, settings(root, tmp_path, "whole", "train.steps=9", *overrides)))
    assert caught.value.hint == "give it another name: run.name=<new name>"
    return str(caught.value).partition(" with another configuration: ")[2] or str(caught.value).partition(" now: ")[2]


def test_other_shards_under_the_same_root_are_refused_by_name(copied, tmp_path):
    """One sample changes by one byte, as another conversion would change it: the same frames, other checksums."""
    folder = copied / "kitti_step/train"
    table = pq.read_table(folder / "index.parquet")
    checksums = table["crc32"].to_pylist()
    checksums[0] ^= 1
    place = table.schema.get_field_index("crc32")
    content = encode_index(table.set_column(place, "crc32", pa.array(checksums, pa.uint32())))
    (folder / "index.parquet").write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["index_sha256"] = hashlib.sha256(content).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert re.fullmatch(
        r"the shards of kitti_step/train are others \(index [0-9a-f]{12} -> [0-9a-f]{12}\)", refused(copied, tmp_path)
    )


def test_another_dataset_under_the_same_root_is_refused_by_name(copied, tmp_path):
    shutil.rmtree(copied / "kitti_mots")
    said = refused(copied, tmp_path)
    assert "datasets: without kitti_mots" in said
    assert "shares: {'coco_panoptic': 342, 'kitti_mots': 341, 'kitti_step': 341} -> " in said


def test_another_meaning_of_the_labels_is_refused_by_name(copied, tmp_path, monkeypatch):
    """The contract's mapping changes, which no shard shows."""
    real = vocabulary.load_contract

    def other(name):
        contract = real(name)
        if name != "kitti_step":
            return contract
        first, second, *rest = contract.classes
        swapped = (first.model_copy(update={"unified": second.unified}), second, *rest)
        return contract.model_copy(update={"classes": swapped})

    monkeypatch.setattr(vocabulary, "load_contract", other)
    said = refused(copied, tmp_path)
    assert "the label contract of kitti_step gives its classes another meaning" in said
    assert "contract of coco_panoptic" not in said


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed=1", "seed: 0 -> 1"),
        ("data.alpha=0.5", "data.alpha: 0.0 -> 0.5"),
        ("data.clip=3", "data.clip: 2 -> 3"),
        ("data.stride=[1,2]", "data.stride: [1, 1] -> [1, 2]"),
        ("train.global_batch=4", "train.global_batch: 6 -> 4"),
    ],
)
def test_another_plan_is_refused_by_key(copied, tmp_path, override, said):
    assert refused(copied, tmp_path, override) == said


def test_decoding_on_the_cluster_sees_the_same_and_counts_what_it_replaces(whole, toy_shards, runs, tmp_path):
    root = Path(shutil.copytree(toy_shards, tmp_path / "shards"))
    config = load_config(None, settings(root, runs, "cluster", "train.steps=7", "data.decode_on=cluster"))
    rows = plan_of(config, splits_of(str(root), None, "train")).rows(np.arange(42)).to_pylist()
    victim = rows[20]  # of the fourth step
    tar = root / DATASETS[victim["dataset"]] / "train" / victim["now_shard"]
    data = bytearray(tar.read_bytes())
    data[victim["now_offset"] + 700] ^= 255
    tar.write_bytes(data)
    outcome = train(config)
    same = ledger.compare(outcome.folder / "ledger.jsonl", whole.folder / "ledger.jsonl")
    same_frame = [row for row in rows if (row["key"], row["dataset"]) == (victim["key"], victim["dataset"])]
    hit = [row["position"] // 6 + 1 for row in same_frame]
    assert same.parting == min(hit), "until the damage the ledgers agree"
    assert "other samples" in same.reason, "and after it batches keep their composition"
    steps, counted = steps_of(outcome, "data/bad_samples")
    assert dict(zip(steps, counted, strict=True))[2] == sum(step <= 2 for step in hit)
    assert counted[-1] >= len(hit)
    assert checkpoint.read_state(outcome.checkpoint)["bad_samples"] == counted[-1]


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
        PostError, match=r"^training workers of run 'worker' were killed, or ran out of memory, more than 0 times"
    ) as caught:
        go(toy_shards, runs, "worker", "train.steps=100000", "train.checkpoint_every=2", "train.max_failures=0")
    killer.join()
    found = checkpoint.read_state(checkpoint.latest(runs / "worker/checkpoints"))["step"]
    assert caught.value.hint == f"the same command continues from step {found}"
