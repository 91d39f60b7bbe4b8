"""Turn weights of Detectron2 (Panoptic-DeepLab, POST), torchvision or our own training into a checkpoint, safely."""

import argparse
from pathlib import Path

import _paths  # noqa: F401
from post_platform.command import check_folder, image_size, run, write_json


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python pipelines/import_weights.py model_final.pkl --out cityscapes --train-size 512x1024",
    )
    parser.add_argument(
        "file", metavar="FILE",
        help=".pkl or .pth, of which nothing is executed; or a checkpoint, to take the weights out alone",
    )  # fmt: skip
    parser.add_argument("--out", metavar="C", help="checkpoint: a folder or s3:// address (default: the file's name)")
    parser.add_argument(
        "--train-size", type=image_size, metavar="HxW",
        help="crop of the training, if the pyramid pools over it: 512x1024 for Detectron2's Cityscapes models",
    )  # fmt: skip
    parser.add_argument(
        "--size-divisibility", type=int, default=16, metavar="N",
        help="images are padded to a multiple of N: 640 for Detectron2's COCO models (default: 16)",
    )  # fmt: skip
    parser.add_argument(
        "--classes", type=Path, metavar="F.txt",
        help="a line `NAME thing` or `NAME stuff` for each class (default: Cityscapes' 19, or COCO's 133)",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the same: source, files, sha256")
    arguments = parser.parse_args()

    from post_platform import storage
    from post_platform.training.imported import (
        open_network,
        published_classes,
        read_classes,
        save_imported,
        save_weights_alone,
    )

    file = Path(arguments.file)
    out = storage.absolute(arguments.out or file.stem)
    if not storage.is_remote(out):
        check_folder(Path(out).parent, "--out")
    if not file.suffix or storage.is_remote(arguments.file) or file.is_dir():
        found = save_weights_alone(out, arguments.file)
        print(f"{arguments.file}: {found['taken_from']['weights']}\ncheckpoint: {out}")
        write_json(arguments.json, {"checkpoint": out, **found})
        return
    model, names = open_network(file, arguments.train_size, arguments.size_divisibility)
    number = model.arguments["num_classes"]
    classes = read_classes(arguments.classes, number) if arguments.classes else published_classes(number)
    files = save_imported(out, file, model, names, classes)
    facts = model.arguments
    kind = "depthwise separable" if facts["depthwise"] else "dense"
    parts = f"{kind}; {', '.join(facts['branches'])}" if facts["branches"] else "backbone for model.init_from"
    print(f"{file.name}: {facts['backbone']}, {number} classes, {parts}")
    print(f"{len(names)} weights, all found their place ({storage.join(out, 'mapping.json')})")
    for name, digest in files.items():
        print(f"  {digest}  {name}")
    print(f"checkpoint: {out}")
    write_json(arguments.json, {"checkpoint": out, "arguments": facts, "weights": len(names), "sha256": files})


if __name__ == "__main__":
    run(main)
