"""Our shards in other people's readers, and our labels and predictions in official formats, through the scripts."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from post_model.network import Post
from post_model.weights import save_model
from post_platform import cluster, toycity
from post_platform.labels import taxonomy
from post_platform.shards.index import read_split
from post_platform.training import checkpoint
from post_platform.training.vocabulary import projections

ROOT = Path(__file__).resolve().parent.parent


def script(*arguments):
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=180, check=False
    )


def expected(split):
    """Keys and label bytes, cut out of the tars by the index."""
    return [f"{row['sequence']}/{row['frame']:06d}" for row in split.index.to_pylist()]


def test_plain_webdataset_reads_our_shards(toy_shards):
    split = read_split(toy_shards, "kitti_step", "train")
    urls = [f"{split.folder}/{shard['name']}" for shard in split.manifest["shards"]]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == expected(split)
    for sample, row in zip(samples, split.index.to_pylist(), strict=True):
        size = (row["height"], row["width"], 3)
        assert np.array(Image.open(io.BytesIO(sample["image.jpg"]))).shape == size
        label = np.array(Image.open(io.BytesIO(sample["label.png"])))
        assert label.shape == size
        meta = json.loads(sample["meta.json"])
        objects = {(int(c), int(i)) for c, i in (name.split("/") for name in meta["instances"])}
        drawn = {
            (int(c), int(g) * 256 + int(b)) for c, g, b in label.reshape(-1, 3) if 0 < int(g) * 256 + int(b) < 65535
        }
        assert drawn == objects


def test_ray_reads_our_shards_as_a_webdataset(toy_shards):
    import ray

    cluster.connect()
    split = read_split(toy_shards, "kitti_step", "train")
    rows = ray.data.read_webdataset(split.folder, decoder=None, file_extensions=["tar"]).take_all()
    assert sorted(row["__key__"] for row in rows) == sorted(expected(split))
    for row in rows:
        meta = json.loads(row["meta.json"])
        assert f"{meta['sequence']}/{meta['frame']:06d}" == row["__key__"]
        assert Image.open(io.BytesIO(row["image.jpg"])).size == (meta["width"], meta["height"])


@pytest.fixture(scope="module")
def city(tmp_path_factory):
    """Official layouts of the toy city whose shards `toy_shards` has."""
    folder = tmp_path_factory.mktemp("city")
    return toycity.write_all(folder, train_frames=4, val_frames=3, stills=6, height=64, width=128)


TRUTH = {
    "kitti_mots": ("instances", "sMOTSA"),
    "kitti_step": ("panoptic_maps/val", "STQ"),
    "coco_panoptic": ("annotations/panoptic_val2017.json", "PQ"),
}


@pytest.mark.parametrize("dataset", TRUTH)
def test_exported_labels_score_one(toy_shards, city, dataset, tmp_path):
    done = script("pipelines/export.py", toy_shards / dataset / "val", "--out", tmp_path / "results")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"python pipelines/score.py {dataset}" in done.stdout
    truth = next(path for path in city[dataset].rglob("*") if path.as_posix().endswith(TRUTH[dataset][0]))
    arguments = ["--truth", truth, "--predictions", tmp_path / "results", "--json", tmp_path / "scores.json"]
    if dataset == "kitti_mots":
        arguments += ["--sequences", *sorted({row["sequence"] for row in rows_of(toy_shards, dataset)})]
    scored = script("pipelines/score.py", dataset, *arguments)
    assert scored.returncode == 0, scored.stderr
    assert json.loads((tmp_path / "scores.json").read_text())["headline"] == {"name": TRUTH[dataset][1], "value": 1.0}


def rows_of(root, dataset):
    return read_split(root, dataset, "val").index.to_pylist()


def test_predictions_of_a_checkpoint(toy_shards, city, tmp_path):
    torch.manual_seed(0)
    names = tuple(taxonomy().prefix("driving"))
    model = Post(len(names), "small", norm="group")
    things = [name in ("person", "car") for name in names]
    checkpoint.write_whole(
        tmp_path / "small", lambda path: save_model(path, model, names, things, projections(names)), {"step": 0}
    )
    out = tmp_path / "results"
    done = script("pipelines/export.py", toy_shards / "kitti_step", "--checkpoint", tmp_path / "small", "--out", out)
    assert (done.returncode, done.stderr) == (0, "")
    rows = rows_of(toy_shards, "kitti_step")
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*.png")) == sorted(
        f"{row['sequence']}/{row['frame']:06d}.png" for row in rows
    )
    again = script("pipelines/export.py", toy_shards / "kitti_step", "--checkpoint", tmp_path / "small", "--out", out)
    assert again.returncode == 1
    assert again.stderr.splitlines()[0] == f"error: --out {out} is not empty"


def test_mistakes(toy_shards, tmp_path):
    for arguments, message in (
        ([toy_shards / "kitti_step", "--split", "tain"], "kitti_step/tain: not converted"),
        ([toy_shards / "kitti_step/val", "--sequences", "77"], "kitti_step/val has no sequence '77'"),
        ([toy_shards / "kitti_mots/test"], "kitti_mots/test has no labels to export"),
        ([toy_shards / "kitti_step/val", "--checkpoint", tmp_path / "none"], "no usable checkpoint"),
    ):
        done = script("pipelines/export.py", *arguments, "--out", tmp_path / "results")
        assert done.returncode == 1
        assert done.stderr.startswith(f"error: {message}"), done.stderr
        assert "Traceback" not in done.stderr
