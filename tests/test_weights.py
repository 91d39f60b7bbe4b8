import json
import pickle
import re

import numpy as np
import pytest
import torch
import torchvision

from post_model.network import Post
from post_model.weights import (
    load_backbone,
    load_model,
    open_foreign,
    read_card,
    read_foreign,
    save_model,
    save_weights,
)

NAMES, FLAGS = ("road", "car", "person"), (False, True, True)


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = Post(3, "small", norm="batch").to(memory_format=torch.channels_last)
    model(torch.rand(2, 3, 32, 32) * 255)  # moves the running means
    save_model(tmp_path, model, NAMES, FLAGS)
    return tmp_path, model.eval()


def test_a_saved_model_comes_back(saved):
    folder, model = saved
    again, card = load_model(folder)
    image = torch.rand(1, 3, 32, 32) * 255
    with torch.inference_mode():
        torch.testing.assert_close(again.eval()(image).semantic, model(image).semantic)
    assert (card.class_names, card.thing_flags) == (NAMES, FLAGS)
    assert card.arguments == model.arguments


def test_averaged_weights_lie_beside_the_others(saved):
    folder, model = saved
    save_weights(folder / "ema.safetensors", {name: value * 0 for name, value in model.state_dict().items()})
    averaged, _ = load_model(folder, weights="ema")
    assert all(value.abs().sum() == 0 for value in averaged.state_dict().values())


def test_a_model_that_does_not_fit_is_named(saved):
    folder, model = saved
    state = dict(model.state_dict())
    state["branches.semantic.1.offset"] = state.pop("branches.semantic.1.bias")
    state["branches.center.2.bias"] = torch.zeros(7)
    save_weights(folder / "model.safetensors", state)
    message = (
        "unknown: branches.semantic.1.offset; missing: branches.semantic.1.bias; "
        "shape differs: branches.center.2.bias is (7,), expected (1,)"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        load_model(folder)


def test_damaged_files_are_named(saved):
    folder, _ = saved
    with pytest.raises(ValueError, match=r"ema\.safetensors: cannot be read"):
        load_model(folder, weights="ema")
    (folder / "model.safetensors").write_bytes(b"no tensors here")
    with pytest.raises(ValueError, match=r"model\.safetensors: cannot be read"):
        load_model(folder)
    with pytest.raises(ValueError, match=r"model\.json: cannot be read"):
        read_card(folder / "nowhere")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "post-model/9"}, "not of the format post-model/1"),
        ({"class_names": ["road"]}, "1 class names and 3 thing flags for 3 classes"),
        ({"class_names": None}, "is missing or of the wrong type"),
        ({"arguments": {"num_classes": 3, "colour": "red"}}, "unexpected keyword argument 'colour'"),
    ],
)
def test_a_wrong_card_is_named(saved, change, message):
    folder, _ = saved
    card = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**card, **change}))
    with pytest.raises(ValueError, match=message):
        load_model(folder)


def test_one_name_and_one_flag_to_each_class(tmp_path):
    with pytest.raises(ValueError, match="2 class names and 3 thing flags for 3 classes"):
        save_model(tmp_path, Post(3, "small", norm="group"), NAMES[:2], FLAGS)


def test_imagenet_weights_fill_the_backbone(tmp_path):
    torch.manual_seed(1)
    source = torchvision.models.resnet18(weights=None)
    torch.save(source.state_dict(), tmp_path / "resnet18.pth")
    model = Post(3, "resnet18", norm="batch")
    load_backbone(model, tmp_path / "resnet18.pth")
    image = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        stem = source.eval().maxpool(source.relu(source.bn1(source.conv1(image))))
        torch.testing.assert_close(model.eval().backbone(image)["res3"], source.layer2(source.layer1(stem)))
    with pytest.raises(ValueError, match=r"does not fit the network; unknown: backbone\.bn1\.num_batches_tracked"):
        load_backbone(Post(3, "resnet18", norm="group"), tmp_path / "resnet18.pth")
    with pytest.raises(ValueError, match=r"shape differs: backbone\.layer1\.0\.conv1\.weight is \(64, 64, 3, 3\)"):
        load_backbone(Post(3, "resnet50"), tmp_path / "resnet18.pth")


class Harmful:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize("name", ["weights.pth", "weights.pkl"])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_never_executed(tmp_path, capsys, name, protocol):
    file = tmp_path / name
    arrays = {"conv1.weight": np.zeros(3, np.float32)}
    for content in (Harmful(), {"model": arrays, "note": Harmful()}, {"model": {"a": np.array([Harmful()])}}):
        file.write_bytes(pickle.dumps(content, protocol=protocol))
        with pytest.raises(ValueError, match=rf"{name}: cannot be read as plain weights: "):
            read_foreign(file)
    assert capsys.readouterr().out == ""
    pickle.loads(pickle.dumps(Harmful(), protocol=protocol))
    assert capsys.readouterr().out == "executed\n", "the pickle above is harmful indeed"


def test_what_a_file_of_pytorch_asks_for_is_named(tmp_path, capsys):
    torch.save({"model": {"conv1.weight": Harmful()}}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"weights\.pth: .* it asks for [\w.]*print; nothing was executed"):
        read_foreign(tmp_path / "weights.pth")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "weights.pkl: cannot be read as plain weights: damaged pickle: EOFError"),
        (pickle.dumps({"a": np.zeros(9)})[:-20], "weights.pkl: cannot be read as plain weights: damaged pickle"),
        (pickle.dumps([1, 2]), "weights.pkl: not a dictionary of tensors by name"),
        (pickle.dumps({"model": {1: np.zeros(3)}}), "weights.pkl: not a dictionary of tensors by name"),
        (
            pickle.dumps({"model": {"conv1.weight": "text"}}),
            "weights.pkl: conv1.weight is str, not an array of numbers",
        ),
        (pickle.dumps({"conv1.weight": np.zeros(3)}), "weights.pkl: no ResNet: it has conv1.weight"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, content, message):
    (tmp_path / "weights.pkl").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        open_foreign(tmp_path / "weights.pkl")
    with pytest.raises(ValueError, match=r"nowhere\.pth: cannot be read: No such file"):
        open_foreign(tmp_path / "nowhere.pth")
