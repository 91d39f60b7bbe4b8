"""The quickstart as a new user starts it, with a training of a few steps; `make quickstart` is the same with more."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from post_platform.training import checkpoint

ROOT = Path(__file__).resolve().parent.parent
APPLIES = {
    "kitti_mots": {"PQ", "sMOTSA"},
    "kitti_step": {"PQ", "sMOTSA", "STQ"},
    "coco_panoptic": {"PQ"},
}


def test_the_whole_way_in_one_command(tmp_path):
    out, result = tmp_path / "out", tmp_path / "result.json"
    command = [sys.executable, "pipelines/quickstart.py", "--out", str(out), "--json", str(result), "train.steps=4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "mlflow ui" in done.stdout
    assert "pipelines/train.py" in done.stdout

    found = json.loads(result.read_text())
    assert set(found["datasets"]) == set(APPLIES)
    for name, columns in found["datasets"].items():
        for moment in ("before", "after"):
            defined = {key for key, value in columns[moment].items() if value is not None}
            assert set(columns[moment]) == {"PQ", "sMOTSA", "STQ"}
            assert defined == APPLIES[name]
            assert all(columns[moment][key] <= 1 for key in defined)
    for moment in ("before", "after"):
        mean = np.mean([columns[moment]["PQ"] for columns in found["datasets"].values()])
        assert found["mean"][moment]["PQ"] == mean
    seconds = found["seconds"]
    assert seconds["total"] == sum(value for phase, value in seconds.items() if phase != "total")
    assert 0.5 < found["peak_memory_gb"] < 6

    (newest,) = checkpoint.whole(out / "runs" / "toycity" / "checkpoints")
    checkpoint.verify(newest)
    assert checkpoint.read_state(newest)["step"] == 4
    assert Image.open(out / "overlays.png").width > 1000
    with Image.open(out / "overlay.gif") as animation:
        assert animation.n_frames >= 10
