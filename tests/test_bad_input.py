"""A user's mistakes, through the scripts: exit code 1, one `error:` line, at most one line of advice, no traceback."""

import json
import re
import runpy
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TINY = ("data.crop=[32,64]", "model.backbone=small", "train.global_batch=6", "train.workers=2", "train.steps=3")


@pytest.fixture
def script(monkeypatch, capsys, caplog):
    """Run a script in this process as its user does; returns the error line and the advice, both without markers."""

    def call(name, *arguments):
        monkeypatch.setattr(sys, "path", [str(ROOT / "pipelines"), *sys.path])
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(ROOT / "pipelines" / name), run_name="__main__")
        lines = capsys.readouterr().err.splitlines()
        assert stopped.value.code == 1, lines
        assert 1 <= len(lines) <= 2, lines
        assert lines[0].startswith("error: ")
        assert all(line.startswith("  ") for line in lines[1:])
        return lines[0].removeprefix("error: "), "".join(lines[1:]).strip()

    return call


@pytest.fixture
def tiny(toy_shards, tmp_path):
    return [*TINY, f"data.root={toy_shards}", f"run.dir={tmp_path / 'runs'}"]


def test_no_shards_at_all(script, tmp_path):
    line, advice = script("train.py", f"data.root={tmp_path / 'none'}", f"run.dir={tmp_path / 'runs'}")
    assert line == f"no converted dataset under {tmp_path / 'none'}"
    convert = f"python pipelines/convert.py DATASET --source <folder> --out {tmp_path / 'none'}"
    assert advice == f"{convert}; or see it work first: make quickstart"
    assert not (tmp_path / "runs").exists(), "nothing was begun"
    assert script("evaluate.py", "--checkpoint", tmp_path, "--data", tmp_path / "none") == (line, advice)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.datasets=[kiti_mots]", "unknown dataset 'kiti_mots'; did you mean kitti_mots"),
        ("data.datasets=[kitti_mots,kitti_mots]", "'kitti_mots' is named twice"),
        ("train.step=3", "train.steps"),
        ("loss.depth=1", "depth"),
        ("data.weights.kitti_mots=2", "by design"),
        ("kitti_mots.weight=2", "by design"),
        ("train.steps=0", "train.steps"),
        ("train.steps", "override 'train.steps' is not key=value"),
    ],
)
def test_a_wrong_key_or_value(script, tiny, override, expected):
    line, _ = script("train.py", *tiny, override)
    assert expected in line


def test_a_loss_weight_for_a_branch_that_this_model_does_not_have(script, tiny):
    line, _ = script("train.py", *tiny, "model.branches=[semantic,center,offset]", "loss.prev_offset=0.1")
    assert "loss.prev_offset is set, but model.branches has no branch 'prev_offset'" in line


def test_a_dataset_that_is_not_converted(script, tiny, toy_shards, tmp_path):
    shards = tmp_path / "shards"
    shutil.copytree(toy_shards / "kitti_step", shards / "kitti_step")
    line, advice = script("train.py", *tiny, f"data.root={shards}", "data.datasets=[kitti_mots]")
    assert line == f"dataset 'kitti_mots' is not converted under {shards}; did you mean kitti_step?"
    assert advice == f"python pipelines/convert.py kitti_mots --source <folder> --out {shards}"
    shutil.rmtree(shards / "kitti_step/val")
    line, advice = script("train.py", *tiny, f"data.root={shards}")
    assert line == f"kitti_step under {shards} has no split 'val'; it has train"
    assert advice.endswith("--split val")
    (shards / "kitti_step/train/manifest.json").unlink()
    assert script("train.py", *tiny, f"data.root={shards}")[0] == f"no converted dataset under {shards}"


def test_an_index_that_is_damaged(script, tiny, toy_shards, tmp_path):
    shards = Path(shutil.copytree(toy_shards, tmp_path / "shards"))
    index = shards / "kitti_mots/train/index.parquet"
    index.write_bytes(index.read_bytes()[:-100])
    line, advice = script("train.py", *tiny, f"data.root={shards}")
    assert line.startswith("kitti_mots/train: index.parquet is damaged")
    assert advice.startswith("write it again: python pipelines/convert.py kitti_mots --source ")


def test_a_folder_that_cannot_be_written(script, tiny, tmp_path):
    (tmp_path / "file").write_text("")
    line, advice = script("train.py", *tiny, f"run.dir={tmp_path / 'file' / 'runs'}")
    assert line == f"run.dir: cannot write {tmp_path}/file/runs/post: Not a directory"
    assert advice == "choose another: run.dir=<folder>"


def test_an_mlflow_server_that_is_not_there(script, tiny):
    started = time.monotonic()
    line, advice = script("train.py", *tiny, "mlflow.uri=http://127.0.0.1:9")
    assert line.startswith("cannot reach MLflow at http://127.0.0.1:9: ")
    assert "mlflow server" in advice
    assert time.monotonic() - started < 15


def test_weights_that_are_not_there(script, tiny, tmp_path):
    line, _ = script("train.py", *tiny, f"model.init_from={tmp_path / 'none'}")
    assert line.startswith(f"model.init_from: {tmp_path / 'none'}")


def test_a_folder_that_is_no_checkpoint(script, toy_shards, tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        line, advice = script("evaluate.py", "--checkpoint", folder, "--data", toy_shards)
        assert line.startswith("no usable checkpoint: ")
        assert str(folder) in line
        assert advice == "a run's checkpoints are in <run.dir>/<run.name>/checkpoints"


def test_a_dataset_to_evaluate_that_is_misspelt(script, toy_shards, tmp_path):
    line, _ = script("evaluate.py", "--checkpoint", tmp_path, "--data", toy_shards, "--datasets", "kitti_motz")
    assert line == f"dataset 'kitti_motz' is not converted under {toy_shards}; did you mean kitti_mots, kitti_step?"


def run_train(*overrides):
    command = [sys.executable, "pipelines/train.py", *TINY, *overrides]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180, check=False)


def test_a_shard_truncated_after_conversion_ends_the_training_with_its_name(toy_shards, tmp_path):
    shards = Path(shutil.copytree(toy_shards, tmp_path / "shards"))
    tar = shards / "kitti_step/train/000000.tar"
    tar.write_bytes(tar.read_bytes()[:2000])
    done = run_train(f"data.root={shards}", f"run.dir={tmp_path / 'runs'}", "data.max_bad_samples=0")
    assert done.returncode == 1, done.stderr
    output = done.stdout + done.stderr
    assert "Traceback" not in output
    errors = [line for line in output.splitlines() if "error" in line.lower()]
    assert len(errors) == 1, output
    assert re.match(
        r"error: more than 0 samples could not be read; the last: kitti_step/train/000000.tar, sample \d{4}/\d{6}"
        r"(, its previous frame)?: cannot be read: .*: the file is truncated$",
        errors[0],
    )
    lines = done.stderr.splitlines()
    assert lines[lines.index(errors[0]) + 1 :] == [
        f"  see what is damaged: python pipelines/check.py {shards}/kitti_step"
    ]
    assert len(lines) < 12, done.stderr


def test_a_validation_shard_truncated_after_conversion_is_named_too(toy_shards, tmp_path):
    shards = Path(shutil.copytree(toy_shards, tmp_path / "shards"))
    tar = shards / "kitti_mots/val/000000.tar"
    tar.write_bytes(tar.read_bytes()[:-2000])
    done = run_train(f"data.root={shards}", f"run.dir={tmp_path / 'runs'}", "train.steps=1")
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: kitti_mots/val/000000.tar, sample 0006/000002: cannot be read: ")
    record = json.loads((tmp_path / "runs/post/run.json").read_text())
    assert record["mlflow_run_id"]
