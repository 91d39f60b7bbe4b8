"""Speed of the parts of a frame: what is measured is a real frame, and the script says it in a few lines."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from post_model import tracker
from post_model.fusion import fuse
from post_model.network import Post
from post_model.weights import save_model
from post_platform import speed

ROOT = Path(__file__).resolve().parent.parent
THINGS = (False, False, True, True)


def test_the_street_holds_its_objects_and_they_move():
    thing, state, seen = torch.tensor(THINGS), tracker.start(), []
    frames = list(speed.street(THINGS, (128, 256), 6))
    for repeat in range(4):
        semantic, center, offset, prev_offset = frames[repeat % 2]
        panoptic = fuse(semantic, center, offset, thing, stuff_area=32).image(0)
        ids, state = tracker.step(panoptic, prev_offset[0] if repeat else None, state)
        seen.append((panoptic, ids))
    assert 4 <= len(seen[0][0].scores) <= 6, "one may hide another"
    assert not torch.equal(seen[0][0].instances, seen[1][0].instances), "they move"
    assert state.next_id - 1 == len(seen[0][0].scores), "and keep their tracks"
    assert set(seen[0][0].classes.unique().tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("things", [(True, True), (False,)])
def test_a_street_of_things_or_stuff_alone(things):
    semantic, center, *_ = next(speed.street(things, (64, 96), 3))
    assert semantic.shape == (1, len(things), 64, 96)
    assert (center.max() > 0) == any(things)


def test_every_repetition_is_kept():
    model = Post(4, "small", norm="group")
    found = speed.measure(model, THINGS, (64, 96), objects=3, repeats=3)
    assert {part: len(times) for part, times in found.seconds.items()} == dict.fromkeys(speed.PARTS, 3)
    assert found.median("total") == pytest.approx(sum(found.median(part) for part in speed.PARTS))
    assert 0.1 < found.peak_gb < 100


def benchmark(*arguments, cwd=ROOT):
    command = [sys.executable, ROOT / "pipelines" / "benchmark.py", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def test_the_script_measures_a_checkpoint(tmp_path):
    save_model(tmp_path / "c", Post(4, "small", norm="group"), "abcd", THINGS)
    options = ("--channels-last", "--bf16", "--threads", 1, "--repeats", 2, "--objects", 3)
    done = benchmark("--checkpoint", "c", "--size", "64x128", "--json", "speed.json", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "c, 64x128, 3 objects, cpu, 1 threads, bf16, channels last" in done.stdout
    assert "images/s" in done.stdout
    found = json.loads((tmp_path / "speed.json").read_text())
    assert set(found["median_s"]) == {*speed.PARTS, "total"}
    assert found["network"]["backbone"] == "small"
    assert len(found["all_s"]["fusion"]) == 2


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--backbone", "vgg"), 1, "error: unknown backbone 'vgg'; expected one of small, resnet18"),
        (("--checkpoint", "nowhere"), 1, "error: no usable checkpoint"),
        (("--size", "1024"), 2, "argument --size: invalid HxW value: '1024'"),
        (("--size", "0x8"), 2, "argument --size: invalid HxW value: '0x8'"),
        (("--repeats", "0"), 1, "error: --repeats must not be 0"),
        (("--device", "tpu"), 1, "error: --device tpu: not on this machine"),
    ],
)
def test_mistakes_are_one_line(arguments, code, message):
    done = benchmark(*arguments)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr
