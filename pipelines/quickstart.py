"""See the whole system work in minutes: toy city -> convert -> check -> train -> score -> MLflow -> overlays."""

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import _paths
from post_platform.command import check_folder, run, write_json
from post_platform.config import RunConfig, load_config
from post_platform.errors import ConfigError
from post_platform.storage import is_remote

DATASETS = ("kitti_mots", "kitti_step", "coco_panoptic")
CONFIG = _paths.ROOT / "pipelines" / "configs" / "toycity.yaml"
SCORES = {"PQ": "PQ", "sMOTSA": "sMOTSA/car", "STQ": "STQ"}  # what the table shows: the name in `score`


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="example: python pipelines/quickstart.py --out quickstart"
    )
    parser.add_argument("--out", default="quickstart", metavar="DIR", help="default: ./quickstart")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write scores, seconds and peak memory")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="configuration overrides of the training")
    arguments = parser.parse_intermixed_args()
    if is_remote(arguments.out):
        raise ConfigError(f"--out {arguments.out}: the quickstart needs a folder of this machine")
    out = Path(arguments.out).resolve()
    fixed = [f"data.root={out / 'shards'}", f"run.dir={out / 'runs'}", "data.datasets=[" + ",".join(DATASETS) + "]"]
    config = load_config(CONFIG, [*fixed, *arguments.overrides])

    check_folder(out, "--out")
    if arguments.json:
        check_folder(arguments.json.resolve().parent, "--json")

    from post_platform.memory import PeakMemory

    with PeakMemory() as memory:
        clock = Clock()
        results = follow(out, config, clock)
    summary = {**results, "seconds": {**clock.seconds, "total": sum(clock.seconds.values())}}
    summary["peak_memory_gb"] = memory.gigabytes
    write_json(arguments.json, summary)
    print_summary(summary, out)


class Clock:
    """Names and times the phases."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str, what: str) -> Iterator[None]:
        """Announce a phase, and note its seconds when it ends."""
        print(f"[{len(self.seconds) + 1}] {what}", flush=True)
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started


def follow(out: Path, config: RunConfig, clock: Clock) -> dict:
    """Go the whole way once; returns the scores before training, after it, and with plain IoU tracking."""
    from post_platform import cluster, toycity
    from post_platform.training.launch import prepare, save_untrained, train
    from post_platform.training.report import training_progress
    from post_platform.training.spread import evaluate_checkpoint

    with clock.phase("toy city", "drawing toy city in three official dataset layouts"):
        sources = toycity.write_all(out / "toycity")
    with clock.phase("start Ray", "starting Ray"):
        print("    " + cluster.connect())
    with clock.phase("convert", "converting to shards, verifying them"):
        convert_and_check(sources, Path(config.data.root))
    with clock.phase("untrained", "scoring the untrained network"):
        job = prepare(config)
        before = evaluate_checkpoint(save_untrained(job, out / "untrained"), job.val).scores
    with clock.phase("train", f"training on the mixture, {config.train.steps} steps; held-out worlds at the end"):
        with training_progress(config.train.steps) as progress:
            outcome = train(config, progress)
        after = outcome.scores["datasets"]
    with clock.phase("iou tracking", "scoring the same network with plain mask-IoU tracking"):
        iou = evaluate_checkpoint(outcome.checkpoint, job.val, "iou").scores
    with clock.phase("pictures", "drawing what it sees"):
        draw(outcome.checkpoint, job.val, out)
    columns = {"before": before, "after": after, "iou_tracking": iou}
    datasets = {
        name: {column: {key: found[name].get(SCORES[key]) for key in SCORES} for column, found in columns.items()}
        for name in DATASETS
    }
    mean = {c: {"PQ": sum(datasets[n][c]["PQ"] for n in DATASETS) / len(DATASETS)} for c in columns}
    return {"datasets": datasets, "mean": mean, "mlflow_uri": outcome.mlflow_uri}


def convert_and_check(sources: dict[str, Path], root: Path) -> None:
    """Write every split of the three datasets as shards, and read all of them back."""
    from post_platform.errors import DataError
    from post_platform.shards.check import check
    from post_platform.shards.write import convert

    for name, source in sources.items():
        for manifest in convert(name, source, str(root)):
            report = check(str(root), name, manifest["split"])
            if report.problems:
                raise DataError(f"{name}/{manifest['split']}: {report.problems[0]}")
            print(f"    {name}/{manifest['split']}: {manifest['frames']} frames, checked")


def draw(checkpoint: Path, splits: tuple, out: Path) -> None:
    """Write the overlay strip (one held-out frame per dataset) and an animation of a held-out sequence."""
    from post_model.predictor import Predictor
    from post_platform import render
    from post_platform.labels import load_contract
    from post_platform.training.evaluate import run_sequence, sequences
    from post_platform.training.journal import triptych

    rows, frames = [], []
    for split in splits:
        contract = load_contract(split.dataset)
        first = sequences([split])[0]
        predictor = Predictor.from_checkpoint(checkpoint, split.dataset)
        pictures = [picture for _, picture in run_sequence(predictor, contract, first)]
        rows.append(triptych(pictures[len(pictures) // 2], titles=not rows))
        if split.dataset == "kitti_step":
            frames = [triptych(picture, truth=False) for picture in pictures]
    render.save_png(out / "overlays.png", render.strip(*rows, vertical=True))
    render.save_gif(out / "overlay.gif", frames, fps=6)


def print_summary(summary: dict, out: Path) -> None:
    """The final table, the time of each phase, and what to do next."""
    from rich.console import Console
    from rich.table import Table

    from post_platform.training.report import cell

    table = Table("dataset", "score", "untrained", "trained", "trained, IoU tracking", title="held-out toy city")
    for name, columns in summary["datasets"].items():
        for key in SCORES:
            values = [columns[column][key] for column in ("before", "after", "iou_tracking")]
            if any(value is not None for value in values):
                table.add_row(name, key + " (car)" * (key == "sMOTSA"), *map(cell, values))
    table.add_row(
        "mean", "PQ", *(cell(summary["mean"][column]["PQ"]) for column in ("before", "after", "iou_tracking"))
    )
    Console(width=100).print(table)
    seconds = summary["seconds"]
    print("seconds: " + ", ".join(f"{name} {value:.0f}" for name, value in seconds.items()))
    print(f"peak memory: {summary['peak_memory_gb']:.1f} GB (all processes)")
    print(f"pictures: {out / 'overlays.png'}, {out / 'overlay.gif'}")
    print("\nnext:")
    print(f"  look at the run      mlflow ui --backend-store-uri {summary['mlflow_uri']}")
    print("  use your own data    python pipelines/convert.py kitti_step --source <folder> --out shards")
    print("                       python pipelines/train.py data.root=shards")


if __name__ == "__main__":
    run(main)
