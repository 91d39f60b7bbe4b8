"""From an official layout to shards and back, through Ray Data; and what a user's mistakes are answered with."""

import hashlib
import json
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from post_platform import storage
from post_platform.cluster import connect
from post_platform.datasets import kitti_mots
from post_platform.datasets.frame import MissingSplit
from post_platform.errors import ConfigError, DataError
from post_platform.shards import record
from post_platform.shards.index import INDEX_SCHEMA, converted, read_split
from post_platform.shards.planning import plan_conversion
from post_platform.shards.write import convert

ROOT = Path(__file__).resolve().parent.parent
LABEL = np.array([[0, 1000, 1000, 0], [10000, 2001, 0, 0]], np.uint16)  # background, car 0, ignore, pedestrian 1
CLASSES = [[0, 1, 1, 0], [255, 2, 0, 0]]
INSTANCES = [[0, 1, 1, 0], [0, 2, 0, 0]]


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def source(tmp_path):
    """KITTI-MOTS: two val sequences of 3 and 2 frames, one test frame."""
    for sequence, count in (("0002", 3), ("0006", 2)):
        for frame in range(count):
            save(tmp_path / f"kitti/training/image_02/{sequence}/{frame:06d}.png", np.full((2, 4, 3), 60, np.uint8))
            save(tmp_path / f"kitti/instances/{sequence}/{frame:06d}.png", LABEL)
    save(tmp_path / "kitti/testing/image_02/0000/000000.png", np.full((2, 4, 3), 60, np.uint8))
    return tmp_path / "kitti"


@pytest.fixture(scope="module")
def ray():
    return connect()


def contents(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(Path(folder).iterdir())}


def decoded(split):
    frames = []
    for row in split.index.to_pylist():
        data = storage.read_range(storage.join(split.folder, row["shard"]), row["offset"], row["length"])
        frames.append(record.decode(data, row["shard"]))
    return frames


def test_round_trip(ray, source, tmp_path):
    told = []
    manifests = convert("kitti_mots", source, tmp_path / "out", progress=lambda *at: told.append(at))
    assert [(m["split"], m["frames"], m["labelled_frames"], m["sequences"]) for m in manifests] == [
        ("val", 5, 5, 2),
        ("test", 1, 0, 1),
    ]
    assert told == [("val", 5, 5), ("test", 1, 1)]
    assert converted(tmp_path / "out") == {"kitti_mots": ["test", "val"]}
    val = read_split(tmp_path / "out", "kitti_mots", "val")
    assert val.index.schema == INDEX_SCHEMA
    assert val.manifest["classes"] == {"0": 5, "1": 5, "2": 5}
    assert [f.key for f in decoded(val)] == ["0002/000000", "0002/000001", "0002/000002", "0006/000000", "0006/000001"]
    for frame in decoded(val):
        assert frame.classes.tolist() == CLASSES
        assert frame.instances.tolist() == INSTANCES
        assert frame.meta["instances"] == {"1/1": 1000, "2/2": 2001}
    assert val.index["seconds_since_previous"].to_pylist() == [None, 0.1, 0.1, None, 0.1]
    with tarfile.open(Path(val.folder) / "000000.tar") as archive:
        assert len(archive.getmembers()) == 15
    (unlabelled,) = decoded(read_split(tmp_path / "out", "kitti_mots", "test"))
    assert (unlabelled.classes == 255).all()
    assert json.loads((tmp_path / "out/kitti_mots/val/manifest.json").read_text()) == val.manifest


def test_twice_gives_the_same_bytes_also_over_an_older_version(ray, source, tmp_path):
    convert("kitti_mots", source, tmp_path / "one", "val", shard_bytes=1)
    assert len(contents(tmp_path / "one/kitti_mots/val")) == 7  # five shards
    convert("kitti_mots", source, tmp_path / "one", "val")
    convert("kitti_mots", source, tmp_path / "two", "val")
    first, second = (contents(tmp_path / name / "kitti_mots/val") for name in ("one", "two"))
    assert list(first) == ["000000.tar", "index.parquet", "manifest.json"]
    assert first == second


def test_shards_are_cut_between_sequences_if_possible(source, tmp_path):
    (job,) = plan_conversion("kitti_mots", source, tmp_path, "val")
    image = job.size // 5 + 1  # all frames are alike

    def sizes(shard_bytes):
        (job,) = plan_conversion("kitti_mots", source, tmp_path, "val", shard_bytes)
        return [[ref.key for ref in shard.frames] for shard in job.shards]

    whole = [["0002/000000", "0002/000001", "0002/000002"], ["0006/000000", "0006/000001"]]
    assert sizes(3 * image) == sizes(4 * image) == whole
    assert sizes(5 * image) == [whole[0] + whole[1]]
    assert sizes(2 * image) == [whole[0][:1], whole[0][1:], whole[1]]  # larger than a shard: cut


def test_failed_conversion_leaves_no_split(ray, source, tmp_path):
    convert("kitti_mots", source, tmp_path / "out", "val")
    save(source / "training/image_02/0006/000001.png", np.zeros((5, 4, 3), np.uint8))
    with pytest.raises(DataError, match="kitti_mots/val 0006/000001: label is 2x4, image is 5x4"):
        convert("kitti_mots", source, tmp_path / "out", "val")
    with pytest.raises(DataError, match="no converted dataset under") as error:
        converted(tmp_path / "out")
    assert error.value.hint.startswith(f"python pipelines/convert.py DATASET --source <folder> --out {tmp_path}")
    convert("kitti_mots", source, tmp_path / "out", "test")
    with pytest.raises(DataError, match=r"kitti_mots/val: not converted under .*; converted: test") as error:
        read_split(tmp_path / "out", "kitti_mots", "val")
    assert error.value.hint == (
        f"write it again: python pipelines/convert.py kitti_mots --source <folder> --out {tmp_path / 'out'} --split val"
    )


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("instances/0002/000001.png", LABEL + np.uint16(7000), "kitti_mots 0002/000001: value 7000 has class 7"),
        ("training/image_02/0002/000001.png", b"\x89PNG", "kitti_mots/val 0002/000001: image cannot be read"),
        ("instances/0002/000001.png", b"", "kitti_mots 0002/000001: label cannot be read"),
    ],
)
def test_bad_files_are_named(ray, source, tmp_path, path, content, message):
    if isinstance(content, bytes):
        (source / path).write_bytes(content)
    else:
        save(source / path, content)
    with pytest.raises(DataError, match=message) as error:
        convert("kitti_mots", source, tmp_path / "out", "val")
    assert "\n" not in str(error.value)


def test_splits_that_are_not_there(source, tmp_path):
    with pytest.raises(MissingSplit, match="kitti_mots train: none of the official sequences"):
        plan_conversion("kitti_mots", source, tmp_path, "train")
    with pytest.raises(DataError, match="kitti_mots has no split 'valid'; did you mean val"):
        plan_conversion("kitti_mots", source, tmp_path, "valid")
    with pytest.raises(ConfigError, match="no dataset 'kitti_most'; did you mean kitti_mots"):
        plan_conversion("kitti_most", source, tmp_path)


def test_dots_in_names_become_underscores_and_must_not_collide(tmp_path):
    images = tmp_path / "coco/test2017"
    save(images / "a.b.jpg", np.zeros((2, 2, 3), np.uint8))
    (job,) = plan_conversion("coco_panoptic", tmp_path / "coco", tmp_path, "test")
    assert [ref.key for ref in job.shards[0].frames] == ["a_b/000000"]
    save(images / "a_b.jpg", np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(DataError, match=r"sequences 'a.b' and 'a_b' have the same key"):
        plan_conversion("coco_panoptic", tmp_path / "coco", tmp_path, "test")


def test_frame_that_a_reader_lists_twice(source, tmp_path, monkeypatch):
    listed = kitti_mots.frames
    monkeypatch.setattr(kitti_mots, "frames", lambda folder, split: listed(folder, split) + listed(folder, split)[-1:])
    with pytest.raises(DataError, match=r"^kitti_mots val: frame 0006/000001 is there twice"):
        plan_conversion("kitti_mots", source, tmp_path, "val")


def test_index_and_manifest_that_do_not_belong(ray, source, tmp_path):
    convert("kitti_mots", source, tmp_path, "val")
    folder = tmp_path / "kitti_mots/val"
    manifest = json.loads((folder / "manifest.json").read_text())
    for change, message in (
        ({"format": "post-shards/9"}, "format is 'post-shards/9', this version reads 'post-shards/1'"),
        ({"contract": "0"}, "was written with other native classes than labels/kitti_mots.yaml"),
        ({"index_sha256": "0"}, "index.parquet is damaged"),
    ):
        (folder / "manifest.json").write_text(json.dumps({**manifest, **change}))
        with pytest.raises(DataError, match=message) as error:
            read_split(tmp_path, "kitti_mots", "val")
        assert "python pipelines/convert.py kitti_mots" in error.value.hint
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match="malformed"):
        read_split(tmp_path, "kitti_mots", "val")


def run_script(*arguments):
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


def test_script_answers_mistakes_in_one_line_before_ray_starts(tmp_path):
    started = time.monotonic()
    missing = run_script("pipelines/convert.py", "kitti_mots", "--source", tmp_path / "none", "--out", tmp_path)
    assert time.monotonic() - started < 5
    assert (missing.returncode, missing.stdout) == (1, "")
    assert missing.stderr.startswith(f"error: kitti_mots: source {tmp_path / 'none'} does not exist\n  ")
    wrong = run_script("pipelines/convert.py", "cocopanoptic", "--source", tmp_path, "--out", tmp_path)
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("error: no dataset 'cocopanoptic'; did you mean coco_panoptic?\n")
    assert run_script("pipelines/convert.py", "kitti_mots").returncode == 2
    assert "example: python pipelines/convert.py" in run_script("pipelines/convert.py", "--help").stdout
