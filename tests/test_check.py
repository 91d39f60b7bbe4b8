"""Damage after conversion: every kind is found, names its shard, and says how to write it again."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from post_platform import storage
from post_platform.cluster import connect
from post_platform.errors import ConfigError, DataError
from post_platform.shards.check import check
from post_platform.shards.index import locate, read_split
from post_platform.shards.write import convert

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """KITTI-STEP val: one sequence of four frames in two shards."""
    source = tmp_path_factory.mktemp("step")
    rng = np.random.default_rng(0)
    for frame in range(4):
        image = source / f"images/val/0002/{frame:06d}.png"
        label = source / f"panoptic_maps/val/0002/{frame:06d}.png"
        for path, array in ((image, rng.integers(0, 255, (24, 32, 3))), (label, np.full((24, 32, 3), (13, 0, 5)))):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array.astype(np.uint8)).save(path)
    connect()
    root = tmp_path_factory.mktemp("shards")
    convert("kitti_step", source, root, shard_bytes=2 * image.stat().st_size + 200)
    return root


@pytest.fixture
def root(pristine, tmp_path):
    return Path(shutil.copytree(pristine, tmp_path / "root"))


def shard(root, number=1):
    return root / f"kitti_step/val/{number:06d}.tar"


def script(*arguments):
    command = [sys.executable, "pipelines/check.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_whole_split_has_no_problem(root):
    report = check(root, "kitti_step", "val")
    assert (report.frames, report.shards, report.problems) == (4, 2, ())


def test_truncated_shard(root):
    data = shard(root).read_bytes()
    shard(root).write_bytes(data[:-1600])
    report = check(root, "kitti_step", "val")
    assert (
        report.problems[0] == f"kitti_step/val/000001.tar: is {len(data) - 1600} bytes, the manifest says {len(data)}"
    )
    assert "kitti_step/val/000001.tar, sample 0002/000003" in report.problems[1]
    assert "the shard is truncated" in report.problems[1]
    assert len(report.problems) == 2
    row = read_split(root, "kitti_step", "val").index.to_pylist()[3]
    with pytest.raises(DataError, match=r"000001.tar: ends after byte \d+, expected \d+: the file is truncated"):
        storage.read_range(shard(root), row["offset"], row["length"])


def test_flipped_byte(root):
    data = bytearray(shard(root).read_bytes())
    data[600] ^= 1
    shard(root).write_bytes(data)
    assert check(root, "kitti_step", "val").problems == (
        "kitti_step/val/000001.tar: SHA-256 differs from the manifest",
        "kitti_step/val/000001.tar, sample 0002/000002: checksum differs from the index",
    )


def test_missing_shard(root):
    shard(root).unlink()
    (problem,) = check(root, "kitti_step", "val").problems
    assert problem.startswith("kitti_step/val/000001.tar: ")
    assert problem.endswith("not found")


def test_exchanged_shards(root):
    one, two = shard(root, 0).read_bytes(), shard(root, 1).read_bytes()
    shard(root, 0).write_bytes(two)
    shard(root, 1).write_bytes(one)
    assert {line.split(":")[0].split(",")[0] for line in check(root, "kitti_step", "val").problems} == {
        "kitti_step/val/000000.tar",
        "kitti_step/val/000001.tar",
    }


def test_manifest_that_counts_wrong(root):
    path = root / "kitti_step/val/manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "labelled_frames": 3}))
    assert check(root, "kitti_step", "val").problems == (
        "kitti_step/val/manifest.json: labelled_frames is 3, the index has 4",
    )
    path.write_text(json.dumps({**manifest, "classes": {"13": 3}}))
    assert check(root, "kitti_step", "val").problems == (
        "kitti_step/val/manifest.json: the frames' classes are not those that it counts",
    )


def test_paths_a_user_may_name(root):
    assert locate(str(root / "kitti_step")) == (str(root), "kitti_step", ["val"])
    assert locate(str(root / "kitti_step/val")) == (str(root), "kitti_step", ["val"])
    with pytest.raises(DataError, match=r"kitti_step/train: not converted under .*; converted: val"):
        locate(str(root / "kitti_step"), "train")
    with pytest.raises(ConfigError, match="kiti_step does not end in a dataset's name; did you mean kitti_step"):
        locate(str(root / "kiti_step"))
    with pytest.raises(DataError, match="no converted dataset under"):
        locate(str(root / "none/kitti_step"))


def test_script_draws_and_reports(root):
    whole = script(root / "kitti_step", "--figure", root / "sheet.png", "--json", root / "report.json")
    assert (whole.returncode, whole.stderr) == (0, "")
    assert whole.stdout.startswith("kitti_step/val: 4 frames in 2 shards: ok\n")
    assert Image.open(root / "sheet.png").width > 4 * 32
    assert json.loads((root / "report.json").read_text())[0]["problems"] == []


def test_script_names_shard_and_next_command(root):
    shard(root).write_bytes(shard(root).read_bytes()[:-1600])
    damaged = script(root / "kitti_step")
    assert damaged.returncode == 1
    error, hint = damaged.stderr.splitlines()
    assert error.startswith("error: kitti_step/val: 2 problems, first kitti_step/val/000001.tar: is ")
    assert hint.startswith("  write it again: python pipelines/convert.py kitti_step --source ")
    assert hint.endswith(f" --out {root} --split val")
    assert "Traceback" not in damaged.stdout + damaged.stderr
