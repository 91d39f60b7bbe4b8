"""Damage after conversion: every kind is found, names its shard, and says how to write it again."""

import hashlib
import io
import json
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from post_platform import storage
from post_platform.cluster import connect
from post_platform.datasets.frame import Label
from post_platform.errors import ConfigError, DataError
from post_platform.shards import check as check_module
from post_platform.shards import record
from post_platform.shards.check import check
from post_platform.shards.index import INDEX_SCHEMA, encode_index, locate, read_split
from post_platform.shards.planning import plan_conversion
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
    (job,) = plan_conversion("kitti_step", source, root)
    convert("kitti_step", source, root, shard_bytes=job.size // 2 + 100)
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
    assert report.problems[1].endswith(": the file is truncated")
    assert len(report.problems) == 2
    row = read_split(root, "kitti_step", "val").index.to_pylist()[3]
    with pytest.raises(DataError, match=r"000001.tar: ends after byte \d+, expected \d+: the file is truncated"):
        storage.read_range(shard(root), row["offset"], row["length"])


def test_flipped_byte(root):
    data = bytearray(shard(root).read_bytes())
    data[600] ^= 1
    shard(root).write_bytes(data)
    assert check(root, "kitti_step", "val").problems == (
        "kitti_step/val/000001.tar, sample 0002/000002: checksum differs from the index",
        "kitti_step/val/000001.tar: SHA-256 differs from the manifest",
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
    whole = script(root / "kitti_step", "--full", "--figure", root / "sheet.png", "--json", root / "report.json")
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


def rewrite(root, change):
    """Replace the index by a changed one that the manifest vouches for."""
    folder = root / "kitti_step/val"
    rows = read_split(root, "kitti_step", "val").index.to_pylist()
    change(rows)
    parquet = encode_index(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA))
    (folder / "index.parquet").write_bytes(parquet)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["index_sha256"] = hashlib.sha256(parquet).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda rows: rows[2].update(frame=0), "0002/000000 appears 2 times"),
        (lambda rows: rows[2].update(frame=0), "0002/000000 comes after 000001"),
        (lambda rows: rows[1].update(seconds_since_previous=None), "0002/000001 is None s after its predecessor"),
        (lambda rows: rows[1].update(seconds_since_previous=-0.1), "0002/000001 is -0.1 s after its predecessor"),
        (lambda rows: rows[0].update(seconds_since_previous=0.1), "0002/000000 is the first of its sequence"),
        (lambda rows: rows[1].update(source_video="other"), "0002/000001 is of another source video"),
        (lambda rows: rows[1].update(sequence="0006"), "the frames of a sequence are not contiguous"),
        (lambda rows: rows[1].update(offset=512), "0002/000001 starts at 512, expected"),
        (lambda rows: rows[3].update(length=512), "frames end at byte"),
        (lambda rows: rows[3].update(height=99), "is (24, 32), the index says (99, 32)"),
    ],
)
def test_index_that_contradicts_its_frames_or_itself(root, change, problem):
    rewrite(root, change)
    assert any(problem in line for line in check(root, "kitti_step", "val").problems)


def test_object_that_meta_does_not_name(tmp_path):
    label = Label(np.full((2, 3), 13, np.uint8), np.full((2, 3), 5, np.uint16), {"13/4": 4})
    facts = {"sequence": "0002", "frame": 0, "seconds_since_previous": None, "source_video": "v"}
    image = record.store_image(image_bytes(), "here")
    data = record.encode("0002/000000", image, label, facts)
    row = {**facts, "labelled": True, "height": 2, "width": 3, "crc32": zlib.crc32(data)}
    with pytest.raises(DataError, match=r"sample 0002/000000: meta.json does not name the object 13/5"):
        check_module._check_frame("kitti_step", "kitti_step/val/000000.tar", row, data)


def image_bytes():
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((2, 3, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_sample_is_spread_evenly_and_full_finds_the_rest(root, monkeypatch):
    monkeypatch.setattr(check_module, "SAMPLED_FRAMES", 2)
    monkeypatch.setattr(check_module, "HASHED_BYTES", 1)
    report = check(root, "kitti_step", "val")
    assert (report.frames, report.decoded, report.shards, report.hashed, report.problems) == (4, 2, 2, 1, ())
    data = bytearray(shard(root).read_bytes())
    data[600] ^= 1  # frame 2 of 0..3, in the shard that is not hashed
    shard(root).write_bytes(data)
    assert check(root, "kitti_step", "val").problems == ()
    full = check(root, "kitti_step", "val", full=True)
    assert (full.decoded, full.hashed, len(full.problems)) == (4, 2, 2)


def test_every_shard_is_measured_even_in_a_sample(root, monkeypatch):
    monkeypatch.setattr(check_module, "SAMPLED_FRAMES", 1)
    monkeypatch.setattr(check_module, "HASHED_BYTES", 1)
    shard(root).write_bytes(shard(root).read_bytes()[:-1])
    (problem,) = check(root, "kitti_step", "val").problems
    assert "000001.tar: is " in problem
