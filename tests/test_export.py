import numpy as np
import onnxruntime
import pytest
import torch

from post_model.export import Segmenter, export_network, export_onnx, export_segmenter
from post_model.fusion import fuse
from post_model.network import Post, maps_of

SIZE = (37, 50)  # no multiple of the stride
BATCHES = (1, 2, 5)


def images(batch, size=SIZE, seed=0):
    return torch.randint(
        0, 256, (batch, 3, *size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )  # fmt: skip


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Post(5, "small", norm="group", train_size=(32, 32)).eval()


def test_an_exported_network_gives_the_same_maps_for_any_batch(model, tmp_path):
    torch.export.save(export_network(model, SIZE), tmp_path / "network.pt2")
    graph = torch.export.load(tmp_path / "network.pt2").module()
    for batch in BATCHES:
        now, prev = images(batch), images(batch, seed=1)
        expected, found = maps_of(model(now, prev)), graph(now, prev)
        assert list(found) == ["semantic", "center", "offset", "prev_offset"]
        for name, ours in found.items():
            torch.testing.assert_close(ours, expected[name], atol=1e-6, rtol=1e-6)


def test_a_graph_of_single_images_has_no_motion(model):
    graph = export_network(model, SIZE, pairs=False).module()
    found = graph(images(3))
    assert list(found) == ["semantic", "center", "offset"]
    torch.testing.assert_close(found["center"], model(images(3)).center, atol=1e-6, rtol=1e-6)


def test_exported_network_and_fusion_give_the_same_panoptic_maps(model):
    """With random weights the maps are noise: many centres, ties, void to fill and objects to drop."""
    things, settings = (False, True, True, False, True), {"threshold": -0.5, "nms_kernel": 3, "top_k": 60}
    settings |= {"min_score": -1.0, "instance_area": 5, "stuff_area": 40, "fill_void": True, "merge_plateaus": True}
    graph = export_segmenter(model, things, SIZE, **settings).module()
    numbers = set()
    for batch in BATCHES:
        found, expected = graph(images(batch)), Segmenter(model, things, **settings)(images(batch))
        width = expected["centers"].shape[1]
        assert found["centers"].shape[1] == 60
        for ours, theirs in zip(found.values(), expected.values(), strict=True):
            rows = ours[:, :width] if ours.ndim > 1 and ours.shape != theirs.shape else ours
            assert torch.equal(rows, theirs) if not rows.is_floating_point() else torch.allclose(rows, theirs)
        numbers |= set(expected["number"].tolist())
    assert len(numbers) > 1, "the images differ in their objects"


@pytest.mark.parametrize("seed", range(3))
def test_exported_fusion_is_fusion(seed):
    class Fusion(torch.nn.Module):
        def forward(self, logits, center, offset):
            thing = torch.tensor([False, True, True, False], device=logits.device)
            return fuse(logits, center, offset, thing, threshold=0.3, nms_kernel=3, top_k=40, stuff_area=30)

    def maps(batch, scale=1.0):
        generator = torch.Generator().manual_seed(seed)
        random = [torch.randn(batch, channels, 24, 40, generator=generator) for channels in (4, 1, 2)]
        center = (random[1] * 4).round() / 8 * scale  # coarse values: plateaus and ties
        return random[0], center, random[2] * 6

    batch = torch.export.Dim("batch", min=1)
    shapes = {name: {0: batch} for name in ("logits", "center", "offset")}
    graph = torch.export.export(Fusion(), maps(2), dynamic_shapes=shapes).module()
    for size, scale in ((1, 1.0), (3, 1.0), (2, 0.0)):  # the last one has no centre at all
        found, expected = graph(*maps(size, scale)), Fusion()(*maps(size, scale))
        for index in range(size):
            for ours, theirs in zip(found.image(index), expected.image(index), strict=True):
                assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("backbone", "norm"), [("small", "group"), ("resnet18", "batch")])
def test_onnx_runtime_agrees(tmp_path, backbone, norm):
    torch.manual_seed(1)
    model = Post(5, backbone, norm=norm, train_size=(32, 32))
    export_onnx(model, SIZE, tmp_path / "network.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx", providers=["CPUExecutionProvider"])
    for batch in BATCHES:
        now, prev = images(batch), images(batch, seed=1)
        expected = maps_of(model(now, prev))
        found = session.run(list(expected), {"image": now.numpy(), "prev_image": prev.numpy()})
        for ours, theirs in zip(found, expected.values(), strict=True):
            np.testing.assert_allclose(ours, theirs.detach().numpy(), atol=1e-3)
