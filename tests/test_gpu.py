"""What a GPU computes is what a CPU computes; run by hand with -m gpu where there is one."""

from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
from label_scenes import make_tables, random_batch
from post_scene import THINGS, fake_logits, fake_outputs, make_scene
from torch.nn.parallel import DistributedDataParallel

from post_model.fusion import fuse
from post_model.network import Post, losses, maps_of
from post_model.predictor import Predictor
from post_model.taxonomy import identity
from post_platform.training.optimise import Diverged, Gradient, Health, clip

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


def one_step(device, precision):
    """The gradient of a step in two micro-batches through the training loop's own parts, and its mean losses."""
    network = DistributedDataParallel(
        make_network().to(device).to(memory_format=torch.channels_last if device == "cuda" else torch.contiguous_format)
    )
    batch = random_batch(3, height=64, width=96).to(device)
    tables = make_tables({0: {0, 3}, 1: {1}, 2: {2}}, 4, things=(1, 2), negative=(1, 2)).to(device)
    weights = {"semantic": 1.0, "center": 20.0, "offset": 0.01, "prev_offset": 0.02}

    def autocast():
        return torch.autocast(device, torch.bfloat16) if precision == "bf16" else nullcontext()

    values = Gradient(network, tables, {"sigma": 3.0}, weights, 2, autocast)(batch)
    norm = clip(network.parameters(), 1.0)
    return {name: float(value) for name, value in values.items()}, float(norm)


def make_network():
    torch.manual_seed(0)
    return Post(4, "small", norm="group")


def test_a_step_in_bf16_and_channels_last_is_nearly_that_of_a_cpu(tmp_path):
    dist.init_process_group("cpu:gloo,cuda:nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        values, norm = one_step("cpu", "fp32")
        for precision, tolerance in (("fp32", 1e-2), ("bf16", 5e-2)):
            found, found_norm = one_step("cuda", precision)
            assert found == pytest.approx(values, rel=tolerance)
            assert found_norm == pytest.approx(norm, rel=tolerance)
    finally:
        dist.destroy_process_group()


def test_health_waits_for_the_device_only_when_it_is_asked():
    health = Health()
    with torch.cuda.device(0):
        torch.cuda.set_sync_debug_mode("error")
        try:
            for step in range(1, 6):
                health.note(step, {"total": torch.full((), float("nan") if step == 3 else 1.0, device="cuda")})
        finally:
            torch.cuda.set_sync_debug_mode("default")
    with pytest.raises(Diverged, match=r"^step 3: "):
        health.check()
