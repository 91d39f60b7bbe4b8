"""Same weights as Detectron2's Panoptic-DeepLab and as POST: same outputs."""

import hashlib
import json
from functools import cache

import numpy as np
import pytest
import torch
import torchvision
from reference_weights import DATA, fill, filled, keys, make_image

from post_model.foreign import detectron2_names, from_backbone
from post_model.network import Post, maps_of
from post_model.weights import from_detectron2

PARAMETERS = {
    "cs_dsconv": 30_271_350,
    "cs_conv": 59_770_166,
    "coco_dsconv": 30_300_648,
    "post_kittimots": 36_132_938,
}
SUMMARY = json.loads((DATA / "summary.json").read_text())


@cache
def network(name, train_size=None):
    return from_detectron2(filled(name), train_size)


@cache
def image(height=256, width=512):
    return torch.from_numpy(make_image(height, width))[None]


def test_the_recipe_is_the_one_that_made_the_arrays():
    golden = json.loads((DATA / "fill_golden.json").read_text())
    picture = golden.pop("make_image(256,512,7)")
    assert hashlib.sha256(make_image(256, 512).tobytes()).hexdigest() == picture["sha256"]
    for key, facts in golden.items():
        assert fill(key, tuple(facts["shape"])).ravel()[:5].tolist() == facts["first5"]


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_key_loads_and_nothing_is_left_over(name):
    model = network(name)
    assert sorted(detectron2_names(model).values()) == sorted(keys(name))
    assert sum(value.numel() for value in model.parameters()) == PARAMETERS[name]
    state = model.state_dict()
    for ours, theirs in detectron2_names(model).items():
        assert np.array_equal(state[ours], fill(theirs, keys(name)[theirs])), theirs
    assert model.arguments["backbone"] == "resnet52"
    assert model.arguments["num_classes"] == (19 if name.startswith("cs") else 133)
    assert model.arguments["depthwise"] == (name != "cs_conv")
    assert ("prev_offset" in model.arguments["branches"]) == (name == "post_kittimots")
    assert not model.training


def close(got, expected):
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-4, rtol=0)


@torch.inference_mode()
def test_panoptic_deeplab_equals_detectron2_s():
    expected = np.load(DATA / "net_cs_dsconv_256x512.npz")
    model = network("cs_dsconv")
    found, features = model(image()), model.features(image())
    close(found.semantic[0, :, 1::8, 2::8], expected["sem_logits_sub"])
    close(found.center[0, :, 1::4, 2::4], expected["center_sub"][None])
    close(found.offset[0, :, 1::4, 2::4], expected["offset_sub"])
    close(features["res2"][0, ::16, ::8, ::8], expected["res2_sub"])
    close(features["res3"][0, ::16, ::4, ::4], expected["res3_sub"])
    close(features["res5"][0, ::16, ::4, ::4], expected["res5_sub"])
    top = found.semantic[0].topk(2, dim=0)
    sure = (top.values[0] - top.values[1] > 1e-3).numpy()
    assert sure.mean() > 0.99
    assert np.array_equal(top.indices[0].numpy()[sure], expected["sem_argmax"][sure])
    quarter = {name: head(model.decoders["semantic" if name == "semantic" else "instance"](features))[0]
               for name, head in model.branches.items()}  # fmt: skip
    close(quarter["semantic"], expected["raw_sem"])
    close(quarter["center"], expected["raw_center"])
    close(quarter["offset"], expected["raw_offset"])


@torch.inference_mode()
def test_post_equals_the_reference():
    expected = np.load(DATA / "net_post_256x512.npz")
    found = network("post_kittimots")(image().roll((3, 5), (2, 3)), image())
    close(found.semantic[0, :, 1::8, 2::8], expected["sem_logits_sub"])
    for name in ("center", "offset", "prev_offset"):
        close(getattr(found, name)[0, :, 1::4, 2::4], expected[f"{name}_sub"])
    top = found.semantic[0].topk(2, dim=0)
    sure = (top.values[0] - top.values[1] > 1e-3).numpy()
    assert np.array_equal(top.indices[0].numpy()[sure], expected["sem_argmax"][sure])


@torch.inference_mode()
@pytest.mark.parametrize(
    ("case", "name", "size", "train_size", "divisibility"),
    [
        ("cs_conv_256x512", "cs_conv", (256, 512), None, 16),
        ("coco_dsconv_256x512_pad640", "coco_dsconv", (256, 512), None, 640),
        ("cs_dsconv_512x1024_pool32x64", "cs_dsconv", (512, 1024), (512, 1024), 16),
        pytest.param(
            "cs_dsconv_1024x2048_pool32x64", "cs_dsconv", (1024, 2048), (512, 1024), 16, marks=pytest.mark.slow
        ),
    ],
)
def test_statistics_of_further_cases(case, name, size, train_size, divisibility):
    """Dense convolutions, padding to 640, and windowed pooling: mean, deviation and range of every map."""
    model = network(name, train_size)
    model.size_divisibility = divisibility
    found = {"sem" if k == "semantic" else k: v for k, v in maps_of(model(image(*size))).items()}
    found |= model.features(image(*size))
    model.size_divisibility = 16
    for key, expected in SUMMARY[case].items():
        value = found[key].double()
        got = {"mean": value.mean(), "std": value.std(correction=0), "min": value.min(), "max": value.max()}
        assert {k: v.item() for k, v in got.items()} == pytest.approx(expected, abs=1e-5), key


def test_counters_may_be_absent_all_of_them():
    state = {key: value for key, value in filled("cs_dsconv").items() if not key.endswith("num_batches_tracked")}
    assert torch.equal(from_detectron2(state)(image()).center, network("cs_dsconv")(image()).center)
    state["backbone.stem.conv1.norm.num_batches_tracked"] = np.zeros((), np.int64)
    with pytest.raises(ValueError, match=r"missing: backbone\.res2\.0\.conv1\.norm\.num_batches_tracked"):
        from_detectron2(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sem_seg_head.predictor.weight": None}, r"missing: sem_seg_head\.predictor\.weight"),
        ({"ins_embed_head.center_predictor.bias": None}, r"missing: ins_embed_head\.center_predictor\.bias$"),
        ({"backbone.res4.3.conv2.weight": None}, r"missing: backbone\.res4\.3\.conv2\.weight$"),
        ({"roi_heads.box.weight": np.zeros(3)}, r"unknown: roi_heads\.box\.weight$"),
        ({"backbone.res5.9.conv1.weight": np.zeros(3)}, r"its backbone has \[3, 4, 6, 10\] bottlenecks"),
        ({"sem_seg_head.predictor.bias": np.zeros(7)}, r"sem_seg_head\.predictor\.bias is \(7,\), expected \(19,\)"),
        ({"sem_seg_head.predictor.bias": "text"}, r"sem_seg_head\.predictor\.bias is str, not an array of numbers"),
        ({"pixel_mean": np.array([103.53, 116.28, 123.675])}, r"pixel_mean is \[103.5.*this network's is \(123.675"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    state = filled("cs_dsconv") | change
    with pytest.raises(ValueError, match=message):
        from_detectron2({key: value for key, value in state.items() if value is not None})


def test_pixel_statistics_of_the_right_order_are_accepted():
    state = filled("cs_dsconv") | {"pixel_mean": np.array([123.675, 116.28, 103.53]).reshape(3, 1, 1)}
    assert from_detectron2(state).arguments["num_classes"] == 19


def test_a_bare_backbone_of_detectron2():
    state = {key.removeprefix("backbone."): value for key, value in filled("cs_dsconv").items() if "backbone" in key}
    model = from_backbone(state | {"linear.weight": np.zeros((1000, 2048))})
    assert model.arguments["branches"] == []
    assert torch.equal(model.features(image())["res5"], network("cs_dsconv").features(image())["res5"])
    assert maps_of(model(image())) == {}


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_torchvision_s_weights(name):
    torch.manual_seed(0)
    source = getattr(torchvision.models, name)().eval()
    model = from_backbone(source.state_dict())
    assert model.arguments["backbone"] == name
    picture = (image() - model.mean) / model.std
    x = source.layer2(source.layer1(source.maxpool(source.relu(source.bn1(source.conv1(picture))))))
    with torch.inference_mode():
        torch.testing.assert_close(model.features(image())["res3"], x)
    with pytest.raises(ValueError, match=r"missing: conv1\.weight"):
        from_backbone({key: value for key, value in source.state_dict().items() if key != "conv1.weight"})


def test_resnet50_of_detectron2_has_one_convolution_in_its_stem():
    """Expected: torchvision's own forward pass; the two differ in names only, and in the dilation of res5."""
    torch.manual_seed(0)
    source = from_backbone(torchvision.models.resnet50().state_dict())
    names = detectron2_names(source)
    state = {names[key].removeprefix("backbone."): value for key, value in source.state_dict().items()}
    again = from_backbone(state)
    assert again.arguments["backbone"] == "resnet50"
    assert torch.equal(again.features(image())["res5"], source.features(image())["res5"])


def test_a_backbone_needs_no_class():
    with pytest.raises(ValueError, match="num_classes must be positive, got 0"):
        Post(0, "small")
