"""The commands with s3:// addresses, on moto's server: convert, check, read for training, checkpoints, evaluate."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from post_model.network import Post
from post_model.weights import save_model
from post_platform import storage
from post_platform.data.augment import Augmentation
from post_platform.data.load import ClipLoader
from post_platform.data.plan import Plan
from post_platform.errors import DataError, StorageError
from post_platform.labels import taxonomy
from post_platform.shards.index import read_split
from post_platform.toycity import write_all
from post_platform.training import checkpoint
from post_platform.training.evaluate import open_model
from post_platform.training.vocabulary import projections

pytest_plugins = ("s3_server",)
ROOT = Path(__file__).resolve().parent.parent
WHOLE = Augmentation((64, 128), flip=False, photometric=False, still_motion=False)


def script(*arguments):
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=180, check=False
    )


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(storage, "BACKOFF_SECONDS", 0.001)
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.001)


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def upload(folder, target):
    for name in storage.list_files(folder):
        storage.upload_file(Path(folder) / name, storage.join(target, name))


def save_small(folder):
    torch.manual_seed(0)
    names = tuple(taxonomy().prefix("driving"))
    model = Post(len(names), "small", norm="group")

    def write(path):
        save_model(path, model, names, [True] * len(names), projections(names))

    checkpoint.write_whole(folder, write, {"step": 0})
    return model


def test_convert_check_and_evaluate(proxy, bucket, direct, cache, tmp_path):
    source = write_all(tmp_path / "raw", train_frames=2, val_frames=2, stills=2, height=64, width=128)["kitti_mots"]
    out = f"s3://{bucket}/shards"
    proxy.inject("answer", method="PUT", target=r"000000\.tar", times=2)
    proxy.inject("reset", method="PUT", target=r"index\.parquet")
    convert = ("pipelines/convert.py", "kitti_mots", "--source", source, "--out", out, "--split", "val")
    done = script(*convert)
    assert done.returncode == 0, done.stderr
    assert storage.list_names(f"{out}/kitti_mots/val") == ["000000.tar", "index.parquet", "manifest.json"]
    before = direct.get_object(Bucket=bucket, Key="shards/kitti_mots/val/000000.tar")
    assert "was ready" in script(*convert).stdout  # nothing is transferred twice

    whole = script("pipelines/check.py", f"{out}/kitti_mots", "--full", "--figure", tmp_path / "sheet.png")
    assert whole.returncode == 0, whole.stderr
    assert (tmp_path / "sheet.png").is_file()

    save_small(tmp_path / "small")
    checkpoint.publish(tmp_path / "small", f"s3://{bucket}/small")
    written = ("--json", tmp_path / "e.json", "--report", tmp_path / "report")
    evaluated = script("pipelines/evaluate.py", "--checkpoint", f"s3://{bucket}/small", "--data", out, *written)
    assert evaluated.returncode == 0, evaluated.stderr
    assert '"kitti_mots"' in (tmp_path / "e.json").read_text()
    report = {str(path.relative_to(tmp_path / "report")) for path in (tmp_path / "report").rglob("*.*")}
    drawn = {f"timelines/kitti_mots/{sequence}.png" for sequence in ("0002", "0006")}
    assert report == {"scores.csv", "scores.parquet"} | drawn

    damaged = bytearray(before["Body"].read())
    damaged[700] ^= 1
    direct.put_object(Bucket=bucket, Key="shards/kitti_mots/val/000000.tar", Body=bytes(damaged))
    found = script("pipelines/check.py", f"{out}/kitti_mots")
    assert found.returncode == 1
    assert "kitti_mots/val/000000.tar" in found.stderr
    assert "Traceback" not in found.stdout + found.stderr


def test_training_reads_the_same_batches_by_range(proxy, bucket, toy_shards, impatient):
    names = ("kitti_mots", "coco_panoptic")
    for name in names:
        upload(toy_shards / name / "train", f"s3://{bucket}/shards/{name}/train")
    local, remote = (
        Plan([read_split(root, name, "train") for name in names], global_batch=4, seed=1)
        for root in (toy_shards, f"s3://{bucket}/shards")
    )
    rows = np.arange(8)
    expected = ClipLoader(local, WHOLE).load(local.rows(rows))
    proxy.reset()
    proxy.inject("truncate", target=r"\.tar", first=2, times=2)
    proxy.inject("answer", target=r"\.tar", first=5)
    proxy.inject("flip", target=r"\.tar", first=7)
    loader = ClipLoader(remote, WHOLE, max_bad_samples=0)
    found = loader.load(remote.rows(rows))
    for name in expected.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert found.replaced == ()  # a fault on the way is no fault of the sample


def test_a_store_that_is_away_is_no_bad_sample(proxy, bucket, toy_shards, impatient):
    upload(toy_shards / "kitti_mots/train", f"s3://{bucket}/shards/kitti_mots/train")
    plan = Plan([read_split(f"s3://{bucket}/shards", "kitti_mots", "train")], global_batch=4, seed=1)
    proxy.inject("answer", target=r"\.tar", times=1 << 20)
    loader = ClipLoader(plan, WHOLE, max_bad_samples=1000)
    with pytest.raises(StorageError, match=rf"^s3://{bucket}/shards/kitti_mots/train/000000.tar: .*SlowDown"):
        loader.load(plan.rows(np.arange(4)))
    loader._pool.shutdown()  # its other threads still ask, and must not outlive this test's credentials


def test_checkpoint_on_s3_is_whole_verified_and_fetched_once(proxy, bucket, direct, cache, tmp_path, impatient):
    model = save_small(tmp_path / "small")
    target = f"s3://{bucket}/runs/small"
    checkpoint.publish(tmp_path / "small", target)
    proxy.reset()
    found, card = open_model(target)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), found.state_dict().values(), strict=True))
    assert len(card.class_names) == 137
    transfers = [path for method, path in proxy.requests if method == "GET" and "safetensors" in path]
    open_model(target)
    assert len([path for method, path in proxy.requests if method == "GET" and "safetensors" in path]) == len(transfers)

    (copy,) = (cache / "post-platform/checkpoints").iterdir()
    (copy / "model.safetensors").write_bytes(b"damaged here")
    open_model(target)  # fetched again
    assert checkpoint.verify(copy) is None

    shutil.rmtree(cache)
    weights = bytearray(direct.get_object(Bucket=bucket, Key="runs/small/model.safetensors")["Body"].read())
    weights[-1] ^= 1
    direct.put_object(Bucket=bucket, Key="runs/small/model.safetensors", Body=bytes(weights))
    with pytest.raises(DataError, match=rf"^checkpoint {target}: model.safetensors is damaged"):
        open_model(target)
    assert not list((cache / "post-platform/checkpoints").iterdir())

    direct.delete_object(Bucket=bucket, Key="runs/small/MANIFEST.json")
    with pytest.raises(DataError, match=rf"^{target} is not a checkpoint, or not a whole one: it has no MANIFEST.json"):
        open_model(target)


def test_manifest_that_names_files_elsewhere(proxy, bucket, direct, cache):
    direct.put_object(Bucket=bucket, Key="c/MANIFEST.json", Body=b'{"files": {"../../evil": "0"}}')
    with pytest.raises(DataError, match=r"lists '../../evil', which is no file's name"):
        open_model(f"s3://{bucket}/c")


def test_an_upload_that_fails_leaves_no_checkpoint(proxy, bucket, direct, tmp_path, impatient):
    save_small(tmp_path / "small")
    target = f"s3://{bucket}/small"
    checkpoint.publish(tmp_path / "small", target)
    proxy.inject("answer", method="PUT", target="model.json", times=1 << 20)
    with pytest.raises(StorageError, match=rf"^{target}/model.json: "):
        checkpoint.publish(tmp_path / "small", target)
    assert not storage.exists(f"{target}/MANIFEST.json")  # the old one is gone with its first replaced file
