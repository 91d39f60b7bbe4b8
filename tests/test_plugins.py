"""Adding a branch touches one new file: its name is the branch's name, everywhere."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

DEPTH = '''
"""Depth: a branch that exists for this test alone."""
from torch import nn

DECODER = "instance"
SCALE = 1
WEIGHT = 0.25


class Head(nn.Conv2d):
    def __init__(self, channels, num_classes, widths, depthwise, norm):
        super().__init__(channels, 1, 1)


def loss(predicted, batch, tables, settings):
    return predicted.square().sum(), predicted.new_tensor(predicted.numel())
'''

USE = """
import torch
from post_model.network import Post, maps_of
from post_platform.config import load_config

config = load_config(None, ["model.branches=[semantic,center,offset,depth]"])
assert config.loss.depth == 0.25, config.loss
assert load_config(None, ["model.branches=[semantic,center,offset,depth]", "loss.depth=3"]).loss.depth == 3
model = Post(3, "small", branches=config.model.branches, norm="group")
print({name: tuple(map_.shape) for name, map_ in maps_of(model(torch.zeros(1, 3, 32, 48))).items()})
"""


def test_a_new_branch_is_one_new_file(tmp_path):
    for folder in ("platform", "model"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "model/post_model/branches/depth.py").write_text(DEPTH)
    path = os.pathsep.join(str(tmp_path / folder) for folder in ("platform", "model"))
    done = subprocess.run(
        [sys.executable, "-c", USE], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stderr
    assert "'depth': (1, 1, 32, 48)" in done.stdout
