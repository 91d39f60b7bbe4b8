"""Post-processing (argmax, fusion, instances with scores and boxes) beside the network's forward pass, in one run."""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path[0:1] = [str(ROOT / "platform"), str(ROOT / "model"), str(ROOT / "tests")]

from post_scene import THINGS, fake_logits, fake_outputs, make_scene

from post_model.fusion import Panoptic, fuse
from post_model.network import Post

SCENES = {20: 2044, 60: 2084}  # objects drawn (55 of the 60 stay visible): seed of the scene


def scene(objects: int, device: str, memory_format: torch.memory_format) -> tuple[torch.Tensor, ...]:
    """Logits, centres and offsets of a drawn street at 1024x2048, with noise, as a network might give them."""
    panoptic, ids = make_scene(1024, 2048, objects, seed=SCENES[objects])
    classes, center, offset = fake_outputs(panoptic, ids, seed=SCENES[objects] + 1)
    maps = (torch.as_tensor(map_)[None].to(device) for map_ in (fake_logits(classes), center, offset))
    return tuple(map_.contiguous(memory_format=memory_format) for map_ in maps)


def post_process(maps: tuple[torch.Tensor, ...], thing: torch.Tensor) -> Panoptic:
    """The maps have the size of the image already: resizing to it is nothing, as in the reference at native size."""
    return fuse(*maps, thing, stuff_area=2048).image(0)


def upsample(maps: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    """The resizing by 4 that ends a head; it is part of the network's forward, here and in the reference."""
    return [F.interpolate(map_, scale_factor=4, mode="bilinear", align_corners=False) for map_ in maps]


def seconds(run: Callable[[], object], device: str) -> float:
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, epilog="example: python benchmarks/fusion.py --repeats 5")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--channels-last", action="store_true", help="of network and maps")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    memory_format = torch.channels_last if arguments.channels_last else torch.contiguous_format
    model = Post(19, "resnet52", branches=("semantic", "center", "offset")).eval().to(device)
    model = model.to(memory_format=memory_format)
    image = torch.randint(0, 256, (1, 3, 1024, 2048), dtype=torch.uint8).to(device)
    thing = torch.zeros(19, dtype=torch.bool, device=device)
    thing[THINGS] = True
    scenes = {objects: scene(objects, device, memory_format) for objects in SCENES}
    quarter = tuple(map_[..., ::4, ::4].contiguous(memory_format=memory_format) for map_ in scenes[20])
    runs = {"forward": partial(model, image), "x4 resizing in it": partial(upsample, quarter)}
    runs |= {
        f"post-processing, {objects} objects": partial(post_process, maps, thing) for objects, maps in scenes.items()
    }
    for run in runs.values():
        run()
    rounds = [{name: seconds(run, device) for name, run in runs.items()} for _ in range(arguments.repeats)]
    threads = f"{torch.get_num_threads()} threads" if device == "cpu" else torch.cuda.get_device_name()
    print(f"R52 depthwise, 1024x2048, {threads}, {memory_format}, median of {arguments.repeats} interleaved rounds")
    for name in runs:
        own = statistics.median(r[name] for r in rounds)
        share = statistics.median(r[name] / r["forward"] for r in rounds)
        print(f"{name:28} {own * 1e3:9.1f} ms {100 * share:6.2f} % of the forward")


if __name__ == "__main__":
    main()
