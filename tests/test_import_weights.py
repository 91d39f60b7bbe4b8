"""pipelines/import_weights.py: files of others in, checkpoints of ours out."""

import hashlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from reference_weights import filled, keys, make_image

from post_model.network import Post
from post_model.weights import from_detectron2, load_model
from post_platform.errors import DataError
from post_platform.training.checkpoint import verify
from post_platform.training.evaluate import open_model
from post_platform.training.imported import read_classes

ROOT = Path(__file__).resolve().parent.parent


def script(*arguments, cwd):
    command = [sys.executable, ROOT / "pipelines" / "import_weights.py", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One file of each kind."""
    folder = tmp_path_factory.mktemp("weights")
    state = filled("post_kittimots")
    (folder / "post.pkl").write_bytes(pickle.dumps({"model": state, "__author__": "a"}, protocol=2))
    tensors = {name: torch.as_tensor(value) for name, value in filled("cs_dsconv").items()}
    torch.save({"model": tensors, "optimizer": {"state": {}}, "iteration": 9}, folder / "cityscapes.pth")
    torch.save(torchvision.models.resnet18().state_dict(), folder / "resnet18-f37072fd.pth")
    return folder


def test_a_detectron2_pickle_becomes_a_checkpoint(folder):
    done = script("post.pkl", "--out", "here/post", "--json", "report.json", cwd=folder)
    assert done.returncode == 0, done.stderr
    out = folder / "here" / "post"
    assert "post.pkl: resnet52, 133 classes, depthwise separable; semantic, center, offset, prev_offset" in done.stdout
    assert "644 weights, all found their place" in done.stdout
    digest = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    assert f"{digest}  model.safetensors" in done.stdout
    report = json.loads((folder / "report.json").read_text())
    assert report["sha256"]["model.safetensors"] == digest
    assert report["checkpoint"] == str(out)
    mapping = json.loads((out / "mapping.json").read_text())
    assert mapping["source"]["sha256"] == hashlib.sha256((folder / "post.pkl").read_bytes()).hexdigest()
    assert {row["theirs"]: tuple(row["shape"]) for row in mapping["keys"]} == keys("post_kittimots")
    verify(out)
    model, card = load_model(out)
    assert card.class_names[:3] == ("person", "bicycle", "car")
    assert (sum(card.thing_flags), card.thing_flags[79], card.thing_flags[80]) == (80, True, False)
    image = torch.from_numpy(make_image(64, 128))[None]
    expected = from_detectron2(filled("post_kittimots"))(image, image)
    for ours, theirs in zip(model.eval()(image, image), expected, strict=True):
        assert torch.equal(ours, theirs)


def test_a_detectron2_checkpoint_of_pytorch_keeps_its_settings(folder):
    done = script("cityscapes.pth", "--train-size", "512x1024", "--size-divisibility", "32", cwd=folder)
    assert done.returncode == 0, done.stderr
    model, card = open_model(folder / "cityscapes")
    assert model.arguments["train_size"] == [512, 1024]
    assert model.arguments["size_divisibility"] == 32
    assert model.decoders["semantic"].aspp.window == (32, 64)
    things = [name for name, thing in zip(card.class_names, card.thing_flags, strict=True) if thing]
    assert things == ["person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"]


def test_torchvision_s_file_becomes_a_bare_backbone(folder):
    done = script("resnet18-f37072fd.pth", "--out", "backbone", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "resnet18, 0 classes, backbone for model.init_from" in done.stdout
    model, card = open_model(folder / "backbone")
    assert (model.arguments["branches"], card.class_names) == ([], ())
    source = torch.load(folder / "resnet18-f37072fd.pth", weights_only=True)
    assert torch.equal(model.backbone.state_dict()["layer4.1.conv2.weight"], source["layer4.1.conv2.weight"])


def test_other_class_lists_come_from_a_file(folder):
    state = filled("cs_dsconv")
    for kind in ("weight", "bias"):
        name = f"sem_seg_head.predictor.{kind}"
        state[name] = state[name][:2]
    (folder / "two.pkl").write_bytes(pickle.dumps({"model": state}))
    done = script("two.pkl", cwd=folder)
    assert (done.returncode, done.stdout) == (1, "")
    assert "error: the network has 2 classes; only 19 (Cityscapes) and 133 (COCO) have known names" in done.stderr
    assert "--classes FILE" in done.stderr
    assert not (folder / "two").exists()
    (folder / "classes.txt").write_text("blue sky stuff\nballoon thing\n")
    assert script("two.pkl", "--classes", "classes.txt", cwd=folder).returncode == 0
    assert load_model(folder / "two")[1].class_names == ("blue sky", "balloon")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sky stuff\n", r"classes.txt lists 1 classes; the network has 2"),
        ("sky stuff\nballoon\n", r"classes.txt, line 2: got 'balloon', expected NAME thing or NAME stuff"),
        ("sky stuff\nballoon object\n", r"line 2: got 'balloon object', expected NAME thing or NAME stuff"),
        (None, r"classes.txt: cannot be read"),
    ],
)
def test_mistakes_in_a_class_list_are_named(tmp_path, text, message):
    if text:
        (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        read_classes(tmp_path / "classes.txt", 2)


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("name", ["bad.pkl", "bad.pth"])
def test_a_malicious_file_runs_nothing(tmp_path, name):
    if name.endswith("pkl"):
        array = np.zeros(3, np.float32)
        (tmp_path / name).write_bytes(pickle.dumps({"model": {"conv1.weight": array}, "harmful": Harmful()}))
    else:
        torch.save({"model": {"conv1.weight": torch.zeros(3)}, "harmful": Harmful()}, tmp_path / name)
    done = script(name, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {name}: cannot be read as plain weights: it asks for posix.mkdir")
    assert "nothing was executed" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [name], "nothing ran and nothing was written"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.pkl"], "error: nowhere.pkl: cannot be read: No such file or directory"),
        (["post.pkl", "--out", "."], "holds other files"),
        (["post.pkl", "--out", "p", "--train-size", "500x1000"], "train_size must be (H, W), multiples of 16, got"),
        (["post.pkl", "--out", "p", "--size-divisibility", "8"], "size_divisibility must be a multiple of 16, got 8"),
    ],
)
def test_mistakes_are_one_line(folder, arguments, message):
    done = script(*arguments, cwd=folder)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_training_starts_from_an_imported_backbone(folder, tmp_path):
    """Through `model.init_from`, as the file itself would be."""
    from post_platform.config import load_config
    from post_platform.training.job import Job

    for _ in range(2):  # an import may be repeated
        assert script("resnet18-f37072fd.pth", "--out", tmp_path / "backbone", cwd=folder).returncode == 0
    source = torch.load(folder / "resnet18-f37072fd.pth", weights_only=True)
    for start in (tmp_path / "backbone", folder / "resnet18-f37072fd.pth"):
        config = load_config(None, [f"model.init_from={start}", "model.backbone=resnet18"])
        job = Job(config, (), (), ("road", "car"), (False, True), {}, tmp_path, "", "")
        model = job.new_model(job.norm(False, 4))
        assert isinstance(model, Post)
        assert torch.equal(model.backbone.state_dict()["layer1.0.conv1.weight"], source["layer1.0.conv1.weight"])
