"""What docs/extending.md says is followed to the letter: its files put into a copy, its commands run there."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from official_bytes import compressed, photograph, save, write

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
SECTIONS = {text.splitlines()[0]: text for text in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]}


class Section(NamedTuple):
    """What one part of the page tells to do: files to write, a patch, commands, each with the lines it shows."""

    files: dict[str, str]
    patch: str
    commands: list[tuple[str, list[str]]]


def read_section(title: str) -> Section:
    files, patch, commands = {}, "", []
    for kind, text in re.findall(r"^```(\w+)\n(.*?)^```$", SECTIONS[title], re.DOTALL | re.MULTILINE):
        head = re.match(r"# (\S+/\S+\.(?:py|yaml))\n", text)
        if kind in ("python", "yaml"):
            assert head, f"a block of {title!r} does not name its file: {text[:60]!r}"
            files[head[1]] = text
        elif kind == "diff":
            patch += text
        elif kind == "console":
            for step in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
                command, *shown = step.splitlines()
                commands.append((command, shown))
    return Section(files, patch, commands)


def follow(title: str, root: Path, fill=lambda root: None) -> None:
    """Do in a copy of this checkout what a section says; `fill` makes the data that its commands read."""
    section = read_section(title)
    for folder in ("platform", "model", "pipelines"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root)
    for name, text in section.files.items():
        assert not (root / name).exists(), f"{name} is there already: it is no new file"
        write(root / name, text)
    if section.patch:
        git = ["git", "apply", "--whitespace=error-all", "-"]
        environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(root.parent)}
        subprocess.run(git, input=section.patch, cwd=root, env=environment, text=True, check=True)
    sources = [name for name in section.files if name.endswith(".py")]
    for check in (["check"], ["format", "--check"]):
        done = run(root, [sys.executable, "-m", "ruff", *check, "--quiet", *sources])
        assert done.returncode == 0, done.stdout + done.stderr
    fill(root)
    for command, shown in section.commands:
        words = shlex.split(command)
        assert words[0] == "python"
        done = run(root, [sys.executable, *words[1:]])
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        for line in shown:
            assert line in done.stdout, f"{command}\n{done.stdout}"


def run(root: Path, command: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")}
    return subprocess.run(command, cwd=root, capture_output=True, text=True, env=environment)


def campus(root):
    """Two videos of three frames: a person who walks, a bicycle, a person that nobody should care for."""
    for split, video in (("train", "gate"), ("val", "yard")):
        for frame in (1, 2, 3):
            values = np.zeros((32, 48), np.uint16)
            values[4:12, 5 * frame : 5 * frame + 4] = 1000
            values[20:28, 8:20] = 2007
            values[:4, 40:] = 10000
            photograph(root / f"campus/{split}/{video}/{frame:06d}.jpg", 32, 48)
            save(root / f"campus/{split}/{video}/{frame:06d}.png", values)


def test_a_dataset(tmp_path):
    follow("A dataset", tmp_path, campus)
    manifest = json.loads((tmp_path / "shards/campus/train/manifest.json").read_text())
    assert (manifest["frames"], manifest["labelled_frames"], manifest["sequences"]) == (3, 3, 1)
    assert manifest["classes"].keys() == {"0", "1", "2"}
    written = (tmp_path / "results/yard.txt").read_text().splitlines()
    assert [tuple(map(int, line.split()[:3])) for line in written] == [
        (frame, number, number // 1000) for frame in (1, 2, 3) for number in (1000, 2007)
    ]


USE = """
import torch
from label_scenes import make_tables, random_batch
from post_model.branches import LossSettings, load_branch
from post_model.network import Post, losses, maps_of
from post_platform.config import load_config

branches = ["model.branches=[semantic,center,offset,objectness]"]
assert load_config(None, branches).loss.objectness == 0.25
assert load_config(None, [*branches, "loss.objectness=3"]).loss.objectness == 3
model = Post(3, "small", branches=load_config(None, branches).model.branches, norm="group")
batch = random_batch(1, number=2, height=32, width=48)
predictions = model(batch.image, batch.prev_image)
print({name: tuple(map_.shape) for name, map_ in maps_of(predictions).items()})
tables = make_tables({0: {0}, 1: {1}, 2: {2}}, 3, things=(1, 2), negative=(0,))
total, count = losses(predictions, batch, tables)["objectness"]
objects = (batch.instances > 0) & (batch.instances < 65535) & (batch.classes < 255)
empty = batch.classes == 0
assert count == objects.sum() + empty.sum() < 2 * 32 * 48, count
right = torch.where(objects, 30.0, -30.0)[:, None]
for logits, expected in ((right, 0.0), (-right, 30.0)):
    of_this, _ = load_branch("objectness").loss(logits, batch, tables, LossSettings())
    assert torch.isclose(of_this, expected * count, atol=1e-3), (of_this, expected)
(total / count).backward()
assert model.branches["objectness"][-1].weight.grad.abs().sum() > 0
"""


def test_a_branch(tmp_path):
    follow("A branch", tmp_path)
    path = os.pathsep.join([str(tmp_path / "platform"), str(tmp_path / "model"), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", USE], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stderr
    assert "'objectness': (2, 1, 32, 48)" in done.stdout


def one_car_of_two(root):
    left, right = np.zeros((2, 8, 12), bool)
    left[2:5, 1:4] = right[2:5, 8:11] = True
    lines = [f"0 {number} 1 8 12 {compressed(mask)}\n" for number, mask in ((1000, left), (1001, right))]
    write(root / "truth/0001.txt", "".join(lines))
    write(root / "results/0001.txt", lines[0])


def test_a_score(tmp_path):
    follow("A score", tmp_path, one_car_of_two)
    report = json.loads((tmp_path / "scores.json").read_text())["metrics"]["counting"]
    assert report["per_class"] == {"car": {"exact_count": 0.0}, "pedestrian": {"exact_count": 1.0}}
    assert report["exact_count"] == 0.5


@pytest.mark.parametrize(
    ("title", "new", "patched"),
    [
        ("A dataset", ["datasets/campus.py", "labels/campus.yaml", "metrics/results/campus.py"], []),
        ("A branch", ["branches/objectness.py"], []),
        ("A score", ["metrics/counting.py", "tests/test_counting.py"], ["metrics/score.py"]),
    ],
)
def test_nothing_else_is_touched(title, new, patched):
    section = read_section(title)
    assert sorted("/".join(name.split("/")[2:]) or name for name in section.files) == sorted(new)
    assert [name.split("post_platform/")[1] for name in re.findall(r"^\+\+\+ b/(.*)", section.patch, re.M)] == patched
