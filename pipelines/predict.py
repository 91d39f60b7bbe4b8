"""Run a checkpoint over a video, a folder of frames or a converted split: overlay video, tracks, panoptic PNGs."""

import argparse
import signal
from pathlib import Path
from types import FrameType

import _paths  # noqa: F401
from post_platform.command import check_folder, image_size, run, write_json
from post_platform.errors import ConfigError
from post_platform.progress import Progress

SHOWN = ("ids", "classes", "boxes")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__ + " Memory stays constant, however long the video.",
        epilog="example: python pipelines/predict.py street.mp4 --checkpoint runs/post/best --out seen",
    )
    parser.add_argument("input", metavar="INPUT", help="video file, folder of images, or ROOT/DATASET/SPLIT")
    parser.add_argument(
        "--checkpoint", required=True, metavar="C", help="folder or s3:// address; RUN/best, RUN/latest"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="a new or empty folder")
    parser.add_argument("--classes", metavar="DATASET", help="answer in its classes and format (default: the model's)")
    parser.add_argument("--every", type=count, default=1, metavar="N", help="only every N-th frame")
    parser.add_argument("--size", type=image_size, metavar="HxW", help="bring frames to this size (default: their own)")
    parser.add_argument("--fps", type=rate, metavar="F", help="frames per second of a folder (default: 10)")
    parser.add_argument("--device", metavar="NAME", help="default: cuda where there is one, else cpu")
    parser.add_argument("--show", type=shown, default=("ids", "classes"), metavar="WHAT",
                        help="of ids,classes,boxes, or none (default: ids,classes)")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the summary here, too")
    options = parser.parse_args()
    if options.out.is_file() or (options.out.is_dir() and any(options.out.iterdir())):
        raise ConfigError(f"--out {options.out} is not empty", "name another: --out DIR")

    import torch

    from post_platform.footage import open_source
    from post_platform.prediction import answering, predict
    from post_platform.training.evaluate import open_model

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device.split(":")[0] not in ("cpu", "cuda") or (device != "cpu" and not torch.cuda.is_available()):
        raise ConfigError(f"--device {device}: not on this machine", "leave it out, or --device cpu")
    source = open_source(options.input, options.every, options.size, options.fps)
    model, card = open_model(options.checkpoint, device)
    predictor, vocabulary = answering(model, card, options.classes)
    check_folder(options.out, "--out")
    if options.json:
        check_folder(options.json.resolve().parent, "--json")
    with Stop() as stop, Progress(source.name, source.count) as progress:
        summary = predict(source, predictor, vocabulary, options.out, options.show, progress.update, lambda: stop.asked)
    write_json(options.json, summary)
    tracks = sum(summary["tracks"].values())
    print(
        f"{source.name}: {summary['frames']} frames in {summary['run_seconds']:.1f} s "
        f"({summary['frames_per_s']:.2f} frames/s), {tracks} tracks -> {options.out}"
    )
    if stop.asked:
        print("stopped early: what is there is whole, as far as it goes")
        raise KeyboardInterrupt


def count(text: str) -> int:
    """A whole number from 1 on."""
    if int(text) < 1:
        raise ValueError(text)
    return int(text)


def rate(text: str) -> float:
    """A number of frames per second."""
    if not 0.01 <= float(text) <= 1000:
        raise ValueError(text)
    return float(text)


def shown(text: str) -> tuple[str, ...]:
    """Some of ids, classes, boxes, or none."""
    names = tuple(name for name in text.split(",") if name not in ("", "none"))
    for name in names:
        if name not in SHOWN:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(SHOWN)}")
    return names


class Stop:
    """Turns the first Ctrl-C, or SIGTERM, into a request to end after this frame; the second one interrupts."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> "Stop":
        self.before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


if __name__ == "__main__":
    run(main)
