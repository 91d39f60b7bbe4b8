"""Score anyone's result files in a dataset's official format, with the same code that scores our own models."""

import _paths  # noqa: F401, I001

import argparse
import json
import sys
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table

from post_platform.command import run
from post_platform.metrics.contingency import frame_table, merge
from post_platform.metrics.results import read_results, readable
from post_platform.metrics.score import headline, score


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python pipelines/score.py kitti_mots --truth instances_txt --predictions results",
    )
    parser.add_argument("dataset", choices=readable(), metavar="DATASET", help=", ".join(readable()))
    parser.add_argument(
        "--truth",
        type=Path,
        required=True,
        metavar="PATH",
        help="labels in the official layout: a folder; of coco_panoptic the JSON, its PNGs beside it",
    )
    parser.add_argument("--predictions", type=Path, required=True, metavar="DIR", help="results in the same layout")
    parser.add_argument("--sequences", nargs="+", metavar="NAME", help="score these only (default: all of the truth)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the scores, undefined ones as null")
    args = parser.parse_args()

    results = read_results(args.dataset, args.truth, args.predictions, args.sequences)
    errors = Console(stderr=True)
    hidden = not sys.stderr.isatty()
    frames = track(results.frames, "scoring", results.count, console=errors, disable=hidden, transient=True)
    table = merge([frame_table(args.dataset, **vars(pair)) for pair in frames])
    scores = score(table, results.contract) | (results.further() if results.further else {})
    sequences = len(set(table["sequence"].to_pylist()))
    best = headline(scores, results.contract)

    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(f"{args.dataset}: {results.count} frames, {sequences} sequences; values are ratios, IDS a count")
    for shown in (_totals(scores), _per_class(scores)):
        console.print(shown)
    console.print(f"[bold]{results.contract.headline} {_text(results.contract.headline, best)}[/bold]")
    if args.json:
        report = {
            "dataset": args.dataset,
            "frames": results.count,
            "sequences": sequences,
            "headline": {"name": results.contract.headline, "value": best},
            "scores": scores,
        }
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=1) + "\n")


def _totals(scores: dict[str, float | None]) -> Table:
    shown = Table("score", "value", box=SIMPLE_HEAD)
    for name, value in scores.items():
        if "/" not in name:
            shown.add_row(name, _text(name, value))
    return shown


def _per_class(scores: dict[str, float | None]) -> Table:
    """One row per class that has a defined score; DetA and AssA are left to the JSON, to keep the table narrow."""
    listed = dict.fromkeys(name.split("/", 1)[0] for name in scores if "/" in name)
    metrics = [metric for metric in listed if metric not in ("DetA", "AssA")]
    shown = Table("class", *metrics, box=SIMPLE_HEAD)
    for name in dict.fromkeys(name.split("/", 1)[1] for name in scores if "/" in name):
        values = {metric: scores.get(f"{metric}/{name}") for metric in metrics}
        if any(values[metric] is not None for metric in metrics if metric != "IDS"):
            shown.add_row(name, *(_text(metric, value) for metric, value in values.items()))
    return shown


def _text(name: str, value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}" if name == "IDS" else f"{value:.4f}"


if __name__ == "__main__":
    run(main)
