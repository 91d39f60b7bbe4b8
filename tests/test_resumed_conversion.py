"""A conversion that is killed, changed or crowded out: nothing is converted twice, nothing stale survives."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from post_platform import storage
from post_platform.cluster import connect
from post_platform.errors import DataError
from post_platform.shards.index import read_split
from post_platform.shards.planning import plan_conversion
from post_platform.shards.write import convert, remaining

ROOT = Path(__file__).resolve().parent.parent
SEQUENCES = ("0002", "0006", "0007", "0008", "0010", "0013", "0014", "0016", "0018")
FRAMES = 6


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture(scope="module")
def ray():
    return connect()


@pytest.fixture
def source(tmp_path):
    """KITTI-MOTS, val: noise, which takes its time to encode."""
    rng = np.random.default_rng(5)
    for sequence in SEQUENCES:
        for frame in range(FRAMES):
            image = rng.integers(0, 256, (400, 900, 3), np.uint8)
            save(tmp_path / f"kitti/training/image_02/{sequence}/{frame:06d}.png", image)
            save(tmp_path / f"kitti/instances/{sequence}/{frame:06d}.png", np.zeros((400, 900), np.uint16))
    return tmp_path / "kitti"


def hashes(folder):
    """SHA-256 of each file; the manifest without the place that it names."""
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(Path(folder).iterdir())}
    found["manifest.json"] = {**json.loads((Path(folder) / "manifest.json").read_text()), "source": ""}
    return found


def command(source, out):
    arguments = ["pipelines/convert.py", "kitti_mots", "--source", source, "--out", out, "--split", "val"]
    return [sys.executable, *map(str, arguments), "--shard-mb", "1"]


def test_killed_conversion_goes_on_where_it_was(ray, source, tmp_path):
    convert("kitti_mots", source, tmp_path / "whole", "val", shard_bytes=1 << 20)
    folder = tmp_path / "out/kitti_mots/val"
    process = subprocess.Popen(command(source, tmp_path / "out"), cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (folder.is_dir() and len(list(folder.glob(".*.tar.json"))) >= 3) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    ready = {path.name[1:-5] for path in folder.glob(".*.tar.json")}
    assert 3 <= len(ready) < len(SEQUENCES) * FRAMES
    assert not (folder / "manifest.json").exists()
    before = {name: (folder / name).stat().st_mtime_ns for name in ready}
    (folder / ".000099.tar.half").write_bytes(b"half a shard")
    again = subprocess.run(command(source, tmp_path / "out"), cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    assert "of them ready" in again.stdout
    kept = [name for name in ready if (folder / name).stat().st_mtime_ns == before[name]]
    assert len(kept) >= 3  # a report that was still being written when its process died does not count
    assert hashes(folder) == hashes(tmp_path / "whole/kitti_mots/val")


def test_number_of_workers_changes_no_byte(ray, source, tmp_path):
    convert("kitti_mots", source, tmp_path / "four", "val", shard_bytes=1 << 20)
    program = (
        "import ray; ray.init(address='local', num_cpus=1, include_dashboard=False, log_to_driver=False)\n"
        "from post_platform.shards.write import convert\n"
        f"convert('kitti_mots', {str(source)!r}, {str(tmp_path / 'one')!r}, 'val', shard_bytes=1 << 20)\n"
    )
    path = os.pathsep.join(str(ROOT / name) for name in ("platform", "model"))
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    assert hashes(tmp_path / "one/kitti_mots/val") == hashes(tmp_path / "four/kitti_mots/val")


def test_whole_split_is_left_alone_until_its_source_changes(ray, source, tmp_path):
    (first,) = convert("kitti_mots", source, tmp_path, "val")
    folder = tmp_path / "kitti_mots/val"
    written = (folder / "000000.tar").stat().st_mtime_ns
    told = []
    (second,) = convert("kitti_mots", source, tmp_path, "val", progress=lambda *at: told.append(at))
    assert second == first
    assert told == [("val", 54, 54)]
    assert (folder / "000000.tar").stat().st_mtime_ns == written
    label = np.zeros((400, 900), np.uint16)
    label[3:9, 4:8] = 1001
    save(source / "instances/0018/000005.png", label)
    (job,) = plan_conversion("kitti_mots", source, tmp_path, "val")
    assert remaining(job) == 54  # one shard, and one of its labels is new
    convert("kitti_mots", source, tmp_path, "val")
    assert read_split(tmp_path, "kitti_mots", "val").manifest["classes"] == {"0": 54, "1": 1}


def test_only_the_shards_of_changed_files_are_stale(ray, source, tmp_path):
    convert("kitti_mots", source, tmp_path, "val", shard_bytes=1 << 20)
    (job,) = plan_conversion("kitti_mots", source, tmp_path, "val", shard_bytes=1 << 20)
    assert remaining(job) == 0
    broken = job.shards[-1].frames[-1].label
    good = broken.read_bytes()
    broken.write_bytes(b"no label")
    with pytest.raises(DataError, match=r"kitti_mots 0018/000005: label cannot be read"):
        convert("kitti_mots", source, tmp_path, "val", shard_bytes=1 << 20)
    assert not (tmp_path / "kitti_mots/val/manifest.json").exists()
    broken.write_bytes(good)
    (job,) = plan_conversion("kitti_mots", source, tmp_path, "val", shard_bytes=1 << 20)
    assert len(job.shards[-1].frames) <= remaining(job) < job.frames
    convert("kitti_mots", source, tmp_path, "val", shard_bytes=1 << 20)
    assert read_split(tmp_path, "kitti_mots", "val").manifest["frames"] == 54


def test_full_disk_is_found_before_anything_is_written(source, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "free_bytes", lambda folder: 5_000_000)
    with pytest.raises(
        DataError, match=r"kitti_mots/val: about \d\d MB are needed, .*kitti_mots/val has 5 MB"
    ) as error:
        convert("kitti_mots", source, tmp_path, "val")
    assert "--out" in error.value.hint
    assert not (tmp_path / "kitti_mots").exists()


def test_expected_size_is_close(ray, source, tmp_path):
    (job,) = plan_conversion("kitti_mots", source, tmp_path, "val", shard_bytes=1 << 20)
    (manifest,) = convert("kitti_mots", source, tmp_path, "val", shard_bytes=1 << 20)
    written = sum(shard["size"] for shard in manifest["shards"])
    assert 0.9 * job.size < written < 1.1 * job.size
    assert len(job.shards) > 10
    for shard, planned in zip(manifest["shards"], job.shards, strict=True):
        assert 0.9 * planned.size < shard["size"] < 1.1 * planned.size


def test_shards_hold_whole_sequences_or_equal_parts_of_one(source, tmp_path):
    """Nine sequences of six frames that are alike."""
    (job,) = plan_conversion("kitti_mots", source, tmp_path, "val")
    frame = job.size / 54

    def lengths(frames):
        (planned,) = plan_conversion("kitti_mots", source, tmp_path, "val", round(frames * frame))
        for shard in planned.shards:
            assert len({ref.sequence for ref in shard.frames}) == 1 or len(shard.frames) % 6 == 0
        return [len(shard.frames) for shard in planned.shards]

    assert lengths(54.5) == [54]
    assert lengths(13) == [12, 12, 12, 12, 6]
    assert lengths(6.1) == [6] * 9
    assert lengths(5.6) == [6] * 9  # a tenth too much
    assert lengths(5) == [3] * 18  # not five and one
    assert lengths(2.1) == [2] * 27
    assert lengths(0.5) == [1] * 54
