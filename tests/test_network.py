import json

import pytest
import torch

from post_model.backbone import build_backbone
from post_model.decoder import ASPP
from post_model.layers import norm_layer
from post_model.network import BRANCHES, Post, maps_of

NAMES = ("small", "resnet18", "resnet50", "resnet52")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Post(5, "small", norm="group").eval()


def images(number=2, height=32, width=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (number, 3, height, width), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("name", NAMES)
def test_features_have_the_promised_strides_and_channels(name):
    backbone, _ = build_backbone(name, "batch")
    with torch.inference_mode():
        maps = backbone.eval()(torch.zeros(1, 3, 32, 64))
    assert {key: value.shape[1] for key, value in maps.items()} == backbone.channels
    assert {key: tuple(value.shape[2:]) for key, value in maps.items()} == {
        "res2": (8, 16),
        "res3": (4, 8),
        "res5": (2, 4),
    }


@pytest.mark.parametrize("name", ["resnet50", "resnet52"])
def test_the_last_stage_is_dilated_with_a_multi_grid(name):
    backbone, _ = build_backbone(name, "batch")
    assert [unit.conv2.dilation[0] for unit in backbone.layer4] == [2, 4, 8]
    assert backbone.layer4[0].conv2.stride == backbone.layer4[0].downsample[0].stride == (1, 1)
    assert backbone.layer3[0].conv2.stride == (2, 2)


@pytest.mark.parametrize(("height", "width"), [(32, 64), (37, 50), (1, 17)])
def test_maps_have_the_size_of_the_image(model, height, width):
    with torch.inference_mode():
        found = model(images(1, height, width), images(1, height, width))
    shapes = {name: tuple(value.shape) for name, value in maps_of(found).items()}
    assert shapes == {name: (1, channels, height, width) for name, channels in zip(BRANCHES, (5, 1, 2, 2), strict=True)}


def test_without_a_previous_frame_there_is_no_motion(model):
    with torch.inference_mode():
        alone, pair = model(images()), model(images(), images(seed=1))
    assert alone.prev_offset is None
    for name in ("semantic", "center", "offset"):
        torch.testing.assert_close(getattr(alone, name), getattr(pair, name))


def test_features_can_be_kept_for_the_next_frame(model):
    now, prev = images(), images(seed=1)
    with torch.inference_mode():
        whole = model(now, prev)
        parts = model.heads(model.features(now), model.features(prev), (32, 64))
    for name, value in maps_of(whole).items():
        torch.testing.assert_close(maps_of(parts)[name], value)


def test_motion_reads_current_then_previous(model):
    """Fine maps come from t-1, and exchanging the frames changes the answer."""
    now, prev = images(), images(seed=1)
    with torch.inference_mode():
        features = [model.features(image) for image in (now, prev)]
        blind = {**features[0], "res2": features[0]["res2"] * 0, "res3": features[0]["res3"] * 0}
        motion = model.heads(features[0], features[1], (32, 64)).prev_offset
        same = model.heads(blind, features[1], (32, 64)).prev_offset
        swapped = model.heads(features[1], features[0], (32, 64)).prev_offset
    assert torch.equal(motion, same)
    assert not torch.allclose(motion, swapped)
    assert model.decoders["motion"].aspp.pool.in_channels == 2 * model.backbone.channels["res5"]


def test_uint8_and_float_images_agree_and_padding_is_zero_after_normalisation(model):
    image = images(1, 20, 30)
    with torch.inference_mode():
        torch.testing.assert_close(model(image).semantic, model(image.float()).semantic)
        padded = model.mean.expand(3, 32, 32).clone()  # the mean is 0 once normalised
        padded[:, :20, :30] = image[0]
        torch.testing.assert_close(
            model(image).semantic, model(padded[None]).semantic[..., :20, :30], atol=1e-5, rtol=0
        )


def test_offsets_are_four_times_the_heads_output(model):
    with torch.inference_mode():
        features = model.features(images())
        quarter = model.branches["offset"](model.decoders["instance"](features))
        full = model.heads(features, None, (32, 64)).offset
    # Bilinear x4: the mean of the four pixels around a quarter pixel's centre is its own value.
    middle = full[..., 1::4, 1::4] + full[..., 2::4, 2::4] + full[..., 1::4, 2::4] + full[..., 2::4, 1::4]
    smooth = torch.nn.functional.interpolate(quarter, scale_factor=4, mode="bilinear")
    expected = smooth[..., 1::4, 1::4] + smooth[..., 2::4, 2::4] + smooth[..., 1::4, 2::4] + smooth[..., 2::4, 1::4]
    torch.testing.assert_close(middle, 4 * expected)


def test_samples_do_not_influence_each_other(model):
    now, prev = images(), images(seed=1)
    model.train()  # group normalisation does not depend on the batch
    with torch.inference_mode():
        both = model(now, prev)
        one = model(now[:1], prev[:1])
    model.eval()
    for name, value in maps_of(one).items():
        torch.testing.assert_close(maps_of(both)[name][:1], value, atol=1e-5, rtol=1e-4)


def test_arguments_build_the_same_network(model):
    arguments = json.loads(json.dumps(model.arguments))
    again = Post(**arguments)
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
    assert "mean" not in model.state_dict()


def test_branches_may_be_left_out():
    model = Post(3, "small", branches=("semantic",), norm="group")
    assert list(model.decoders) == ["semantic"]
    assert list(maps_of(model(images(), images()))) == ["semantic"]


def test_parameter_counts():
    """POST with the deep stem has 36,132,938 parameters in the reference."""
    count = {name: sum(p.numel() for p in Post(133, name, norm="batch").parameters()) for name in ("small", "resnet52")}
    assert count["small"] < 1_000_000
    assert count["resnet52"] == 36_132_938


def test_frozen_statistics_never_move():
    torch.manual_seed(0)
    layer = norm_layer("frozen")(4).train()
    assert not layer.training
    before = layer(torch.randn(2, 4, 3, 3))
    assert torch.equal(layer.running_mean, torch.zeros(4))
    assert not before.requires_grad
    assert layer.state_dict().keys() == norm_layer("batch")(4).state_dict().keys()


def test_dense_pyramid_and_window_of_any_size():
    with torch.inference_mode():
        assert ASPP(8, 4, (1, 2), False, "group")(torch.zeros(1, 8, 3, 5)).shape == (1, 4, 3, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "resnet9"}, "unknown backbone 'resnet9'; expected one of small, resnet18, resnet50"),
        ({"norm": "auto"}, "unknown norm 'auto'; expected one of batch, sync, frozen, group"),
        ({"branches": ("semantic", "depth")}, "unknown branch 'depth'; a branch is a file of post_model/branches"),
        ({"num_classes": 0}, "num_classes must be positive, got 0"),
        ({"size_divisibility": 24}, "size_divisibility must be a multiple of 16, got 24"),
        ({"train_size": (500, 1000)}, r"train_size must be \(H, W\), multiples of 16, got \(500, 1000\)"),
        ({"train_size": (512,)}, r"train_size must be \(H, W\), multiples of 16, got \(512,\)"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Post(**{"num_classes": 3, "backbone": "small", "norm": "group", **arguments})


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(3, 32, 64), r"image is \(3, 32, 64\); expected \(B, 3, H, W\)"),
        (torch.zeros(1, 4, 32, 64), r"image is \(1, 4, 32, 64\); expected \(B, 3, H, W\)"),
        (torch.zeros(1, 32, 64, 3), r"image is \(1, 32, 64, 3\); expected \(B, 3, H, W\)"),
        (torch.zeros(1, 3, 0, 64), r"image is \(1, 3, 0, 64\); expected \(B, 3, H, W\)"),
        (torch.zeros(1, 3, 32, 64, dtype=torch.int64), r"image is torch\.int64; expected uint8 or float"),
        (torch.zeros(1, 3, 32, 64, dtype=torch.bool), r"image is torch\.bool; expected uint8 or float"),
    ],
)
def test_a_wrong_image_is_named(model, image, message):
    for arguments in ((image,), (image, image)):
        with pytest.raises(ValueError, match=message):
            model(*arguments)


def test_a_previous_image_of_another_size_is_named(model):
    with pytest.raises(ValueError, match=r"prev_image is \(2, 3, 32, 48\), image is \(2, 3, 32, 64\); they must agree"):
        model(images(), images(width=48))
    both = model(images(), images(seed=1).float())
    torch.testing.assert_close(both.prev_offset, model(images(), images(seed=1)).prev_offset)


def test_images_are_padded_to_a_multiple_and_cropped_back():
    """Padding to 64 or to 16 differs only by the zeros that the pyramid's mean and borders see."""
    torch.manual_seed(0)
    model = Post(3, "small", norm="group", size_divisibility=64).eval()
    padded = torch.nn.functional.pad(images(1, 20, 30).float() - model.mean, (0, 34, 0, 44)) + model.mean
    with torch.inference_mode():
        small, large = model(images(1, 20, 30)), model(padded)
        assert small.semantic.shape == (1, 3, 20, 30)
        assert model.features(images(1, 20, 30))["res5"].shape[2:] == (4, 4)
    torch.testing.assert_close(small.semantic, large.semantic[..., :20, :30], atol=1e-5, rtol=0)


def test_a_pooling_window_is_the_mean_around_each_place():
    """A window as large as the map is its mean; a smaller one averages each place's surroundings."""
    torch.manual_seed(0)
    pyramid = ASPP(8, 4, (1,), True, "group", window=(4, 6)).eval()
    whole = ASPP(8, 4, (1,), True, "group").eval()
    whole.load_state_dict(pyramid.state_dict())
    x = torch.randn(2, 8, 4, 6)
    with torch.inference_mode():
        torch.testing.assert_close(pyramid(x), whole(x))
        torch.testing.assert_close(pyramid(x[..., :3, :5]), whole(x[..., :3, :5]))  # a map smaller than the window
        wide = torch.cat([x, x + 5], 3)
        assert not torch.allclose(pyramid(wide), whole(wide))
        assert pyramid(wide).shape == (2, 4, 4, 12)


@pytest.mark.parametrize("channels", [1, 3, 16, 24, 64])
def test_group_normalisation_takes_any_width(channels):
    assert norm_layer("group")(channels)(torch.randn(2, channels, 3, 3)).shape == (2, channels, 3, 3)
