"""What a GPU computes is what a CPU computes; run by hand with -m gpu where there is one."""

import pytest
import torch
from label_scenes import make_tables, random_batch
from post_scene import THINGS, fake_logits, fake_outputs, make_scene

from post_model.fusion import fuse
from post_model.network import Post, losses, maps_of
from post_model.predictor import Predictor
from post_model.taxonomy import identity

pytestmark = pytest.mark.gpu


def test_fusion_is_bit_equal():
    scene, ids = make_scene(512, 1024, 20, seed=1532)
    classes, center, offset = (torch.as_tensor(a) for a in fake_outputs(scene, ids, seed=1533))
    maps = [torch.as_tensor(fake_logits(classes.numpy()))[None], center[None], offset[None]]
    thing = torch.zeros(19, dtype=torch.bool)
    thing[THINGS] = True
    expected = fuse(*maps, thing, stuff_area=2048)
    found = fuse(*(map_.cuda() for map_ in maps), thing.cuda(), stuff_area=2048)
    for ours, theirs in zip(found[:-1], expected[:-1], strict=True):
        assert torch.equal(ours.cpu(), theirs)
    torch.testing.assert_close(found.scores.cpu(), expected.scores)


def test_targets_and_losses_agree():
    torch.manual_seed(0)
    model, batch = Post(4, "small", norm="group"), random_batch(3, height=64, width=96)
    tables = make_tables({0: {0, 3}, 1: {1}, 2: {2}}, 4, things=(1, 2), negative=(1, 2))
    predictions = model(batch.image, batch.prev_image)
    expected = losses(predictions, batch, tables)
    found = losses(type(predictions)(*(map_.cuda() for map_ in predictions)), batch.to("cuda"), tables.to("cuda"))
    for name, pair in expected.items():
        torch.testing.assert_close([value.cpu() for value in found[name]], list(pair), rtol=1e-4, atol=1e-4)


def test_a_video_runs_through():
    torch.manual_seed(0)
    model = Post(3, "small", norm="group").cuda()
    predictor = Predictor(model, identity("abc", (False, True, True)), threshold=-1.0, min_score=-9.0)
    for frame in torch.randint(0, 256, (3, 3, 37, 50), dtype=torch.uint8):
        result = predictor(frame)
        assert result.panoptic.device.type == "cuda"
        assert {segment.id for segment in result.segments} == set(result.panoptic.unique().tolist()) - {0}
    assert len(maps_of(model(torch.zeros(1, 3, 32, 32, device="cuda")))) == 3
