"""How fast this hardware runs a network: backbone, heads, fusion, tracker, images per second, peak memory."""

import argparse
from pathlib import Path

import _paths  # noqa: F401
from post_platform.command import image_size, run, write_json
from post_platform.errors import ConfigError


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python pipelines/benchmark.py --size 1024x2048 --backbone resnet52 --channels-last",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--checkpoint", metavar="C", help="a trained or imported network: a folder or s3:// address")
    which.add_argument("--backbone", default="resnet52", metavar="NAME", help="an untrained one (default: resnet52)")
    parser.add_argument("--classes", type=int, default=19, metavar="N", help="of the untrained one (default: 19)")
    parser.add_argument("--dense", action="store_true", help="dense instead of depthwise separable convolutions")
    parser.add_argument("--size", type=image_size, default=(1024, 2048), metavar="HxW", help="default: 1024x2048")
    parser.add_argument("--objects", type=int, default=20, metavar="N", help="in the street that is fused and tracked")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="frames that count (default: 5)")
    parser.add_argument("--device", metavar="NAME", help="default: cuda where there is one, else cpu")
    parser.add_argument("--threads", type=int, metavar="N", help="of a CPU (default: every core)")
    parser.add_argument("--bf16", action="store_true", help="run the network in bfloat16")
    parser.add_argument("--channels-last", action="store_true", help="keep its maps channels last")
    parser.add_argument("--compile", action="store_true", help="torch.compile it first")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure")
    arguments = parser.parse_args()
    for name in ("objects", "repeats", "classes"):
        if getattr(arguments, name) < (name != "objects"):
            raise ConfigError(f"--{name} must not be {getattr(arguments, name)}")

    import torch

    from post_model.network import Post
    from post_platform.speed import PARTS, measure
    from post_platform.training.evaluate import open_model

    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device.split(":")[0] not in ("cpu", "cuda") or (device != "cpu" and not torch.cuda.is_available()):
        raise ConfigError(f"--device {device}: not on this machine", "leave it out, or --device cpu")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.checkpoint:
        model, card = open_model(arguments.checkpoint, device)
        things, name = card.thing_flags, arguments.checkpoint.rstrip("/").rpartition("/")[2]
    else:
        try:
            model = Post(arguments.classes, arguments.backbone, not arguments.dense).to(device)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        things, name = [index >= arguments.classes * 3 // 5 for index in range(arguments.classes)], arguments.backbone
    height, width = arguments.size
    where = torch.cuda.get_device_name(device) if device != "cpu" else f"cpu, {torch.get_num_threads()} threads"
    choices = [text for flag, text in (
        (arguments.dense, "dense"), (arguments.bf16, "bf16"), (arguments.channels_last, "channels last"),
        (arguments.compile, "compiled"),
    ) if flag]  # fmt: skip
    print(f"{name}, {height}x{width}, {arguments.objects} objects, {', '.join([where, *choices])}", flush=True)
    how = {"bf16": arguments.bf16, "channels_last": arguments.channels_last, "compiled": arguments.compile}
    speed = measure(model, things, arguments.size, arguments.objects, arguments.repeats, **how)
    network = speed.median("backbone") + speed.median("heads")
    for part in (*PARTS, "total"):
        seconds = speed.median(part)
        print(f"  {part:10} {seconds * 1e3:10.1f} ms  {100 * seconds / network:6.1f} % of the network")
    print(f"  {1 / speed.median('total'):.2f} images/s, {speed.peak_gb:.2f} GB at the peak")
    if arguments.json:
        facts = {"network": model.arguments, "size": [height, width], "objects": arguments.objects, "device": where}
        medians = {part: speed.median(part) for part in (*PARTS, "total")}
        result = {**facts, "options": choices, "median_s": medians, "all_s": speed.seconds, "peak_gb": speed.peak_gb}
        write_json(arguments.json, result)


if __name__ == "__main__":
    run(main)
