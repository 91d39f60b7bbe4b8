"""The gradient of a batch does not depend on how its rows are spread over ranks: real processes, gloo and DDP."""

import os
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent

# One rank: its rows of a batch of 4, through the network, the losses and DDP as a training step does it.
RANK = """
import sys
import torch
import torch.distributed as dist
from label_scenes import make_tables, random_batch
from torch.nn.parallel import DistributedDataParallel

from post_model.batch import Batch
from post_model.network import Post, losses
from post_model.taxonomy import LabelTables
from post_platform.training.optimise import global_loss

folder, rank, world_size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/store{world_size}", rank=rank, world_size=world_size)
torch.manual_seed(0)
network = DistributedDataParallel(Post(4, "small", norm="group"), static_graph=True)
batch = random_batch(7, height=64, width=96)
batch.dataset[:] = torch.tensor([0, 1, 1, 0])
batch.prev_instances[3] = 0  # one clip teaches no motion
batch.image.random_(generator=torch.Generator().manual_seed(1))
# Two datasets: a fully labelled one, and one that labels class 1 alone and nothing as free of objects.
full = make_tables({0: {0, 3}, 1: {1}, 2: {2}}, 4, things=(1, 2), negative=(0, 1, 2))
part = make_tables({0: {0, 2, 3}, 1: {1}}, 4, things=(1,))
tables = LabelTables(*(torch.cat([getattr(full, n), getattr(part, n)]) for n in ("allowed", "thing", "negative")))
rows = slice(rank * 4 // world_size, (rank + 1) * 4 // world_size)
mine = Batch(*(getattr(batch, name)[rows] for name in Batch.__dataclass_fields__))
found = losses(network(mine.image, mine.prev_image), mine, tables, hard_fraction=0.4, sigma=3.0)
loss, values = global_loss(found, {"semantic": 1.0, "center": 20.0, "offset": 0.01, "prev_offset": 0.02})
loss.backward()
gradients = {name: value.grad for name, value in network.module.named_parameters()}
torch.save((gradients, values, {name: count for name, (_, count) in found.items()}), f"{folder}/{world_size}_{rank}.pt")
dist.destroy_process_group()
"""


def run(folder, world_size):
    path = os.pathsep.join(str(ROOT / name) for name in ("platform", "model", "tests"))
    environment = {**os.environ, "PYTHONPATH": path, "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANK, folder, str(rank), str(world_size)], env=environment)
        for rank in range(world_size)
    ]
    assert [rank.wait(timeout=120) for rank in ranks] == [0] * world_size
    return [torch.load(folder / f"{world_size}_{rank}.pt", weights_only=True) for rank in range(world_size)]


def test_two_ranks_of_two_samples_are_one_rank_of_four(tmp_path):
    ((alone, values, _),) = run(tmp_path, 1)
    ranks = run(tmp_path, 2)
    first, second = (counts for *_, counts in ranks)
    assert any(first[name] != second[name] for name in first), "the ranks' parts weigh differently"
    for gradients, means, _ in ranks:
        torch.testing.assert_close(means, values)
        for name, expected in alone.items():
            assert expected is not None
            torch.testing.assert_close(gradients[name], expected, rtol=1e-4, atol=1e-6, msg=name)
    assert sum(gradient.abs().sum() for gradient in alone.values()) > 1
