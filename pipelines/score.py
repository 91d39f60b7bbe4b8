"""Score anyone's result files in a dataset's official format, with the same code that scores our own models."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import _paths  # noqa: F401
from post_platform.command import check_folder, run, write_json
from post_platform.metrics.results import count_results, read_results, read_seqmap, readable, within

if TYPE_CHECKING:
    import pyarrow as pa
    from rich.table import Table

    from post_platform.metrics.saved import Scoring

SHOWN = {  # family -> what its table shows; the rest is in the JSON
    "pq": ("pq", "sq", "rq", "tp", "fp", "fn"),
    "miou": ("iou", "acc"),
    "mots": ("sMOTSA", "MOTSA", "MOTSP", "TP", "FP", "FN", "IDS", "MT", "PT", "ML", "Frag"),
    "hota": ("HOTA", "DetA", "AssA", "LocA"),
    "identity": ("IDF1", "IDP", "IDR"),
    "ap": ("AP", "AP50"),
    "rob_mots": ("HOTA", "DetA", "AssA", "LocA"),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python pipelines/score.py kitti_mots --truth instances_txt --predictions results",
    )
    names = [*readable(), "tables"]
    parser.add_argument("dataset", choices=names, metavar="DATASET", help=", ".join(names))
    parser.add_argument("file", nargs="?", type=Path, metavar="F.parquet", help="after `tables`: what --tables wrote")
    parser.add_argument(
        "--truth", type=Path, metavar="PATH",
        help="labels in the official layout: a folder; of JSON formats the JSON, its PNGs beside it",
    )  # fmt: skip
    parser.add_argument("--predictions", type=Path, metavar="PATH", help="results in the official format")
    parser.add_argument("--sequences", nargs="+", metavar="NAME", help="score these only (default: all of the truth)")
    parser.add_argument("--seqmap", type=Path, metavar="F", help="score the sequences and frames that a seqmap lists")
    parser.add_argument("--protocol", metavar="P", help="whose rules, where official tools differ (docs/scores.md)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes to count with (default: 1)")
    parser.add_argument("--tables", type=Path, metavar="F.parquet", help="keep the contingency tables")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all scores, undefined ones as null")
    args = parser.parse_args()
    for flag, file in (("--json", args.json), ("--tables", args.tables)):
        if file:
            check_folder(file.parent, flag)
    if args.dataset == "tables":
        if args.file is None or args.truth or args.predictions:
            parser.error("after `tables` comes the one file that --tables wrote: score.py tables F.parquet")
        reports = again(args)
    else:
        if args.file is not None or args.truth is None or args.predictions is None:
            parser.error("--truth and --predictions are required")
        if args.seqmap and args.sequences:
            parser.error("--seqmap and --sequences both say what is scored; give one")
        reports = [first(args)]
    whole = {"datasets": {report["dataset"]: report for report in reports}}
    write_json(args.json, reports[0] if len(reports) == 1 else whole)


def first(args: argparse.Namespace) -> dict:
    """Count result files, score them and keep their tables."""
    from post_platform.metrics import saved
    from post_platform.metrics.protocols import protocol_of
    from post_platform.progress import Progress

    started = time.monotonic()
    rules = protocol_of(args.dataset, args.protocol)
    listed = read_seqmap(args.seqmap) if args.seqmap else None
    results = read_results(args.dataset, args.truth, args.predictions, list(listed) if listed else args.sequences)
    if listed:
        results = within(results, listed, args.seqmap)
    with Progress("counting", results.count) as progress:
        table = count_results(results, args.workers, progress.update)
    further = {}
    if results.from_pixels:
        with Progress("measuring masks", results.count) as progress:
            further = results.further(progress.update)
    scoring = saved.Scoring(results.contract, results.count, len(results.counts), rules.name, further)
    if args.tables:
        saved.save(args.tables, table, scoring)
    return report(table, scoring, started)


def again(args: argparse.Namespace) -> list[dict]:
    """Score saved tables, each dataset in them by the protocol that it was first scored by unless another is named."""
    from post_platform.metrics import saved
    from post_platform.metrics.protocols import protocol_of

    started = time.monotonic()
    table, scorings = saved.load(args.file)
    chosen = [protocol_of(found.contract.dataset, args.protocol or found.protocol).name for found in scorings]
    return [report(table, replace(found, protocol=name), started) for found, name in zip(scorings, chosen, strict=True)]


def report(table: pa.Table, scoring: Scoring, started: float) -> dict:
    """Print the scores of one dataset; returns them as `--json` writes them."""
    from rich.console import Console

    from post_platform.metrics.protocols import protocol_of
    from post_platform.metrics.score import flat, headline, score

    contract = scoring.contract
    rules = protocol_of(contract.dataset, scoring.protocol)
    families = score(table, contract, rules, scoring.further)
    best = headline(flat(families), contract)
    seconds = time.monotonic() - started
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(
        f"{contract.dataset}: {scoring.frames} frames of {scoring.sequences} sequences, by the rules of "
        f"{scoring.protocol}, {seconds:.1f} s; ratios, and counts"
    )
    for family, found in families.items():
        for shown in shown_tables(family, found):
            console.print(shown)
    console.print(f"[bold]{contract.headline} {text(best)}[/bold]")
    return {
        "dataset": contract.dataset,
        "protocol": scoring.protocol,
        "headline": {"name": contract.headline, "value": best},
        "metrics": families,
        "frames": scoring.frames,
        "sequences": scoring.sequences,
        "seconds": round(seconds, 3),
    }


def shown_tables(family: str, found: dict) -> Iterator[Table]:
    """The tables of one family: its totals, then one row per class that has a defined value."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    each = "class"
    if family == "rob_mots":
        kinds = {f"{name}, {kind}": values for name, listed in found.items() for kind, values in listed.items()}
        found, each = {"per_class": kinds}, "benchmark"
    columns, only_classes = SHOWN.get(family, ()), family in ("mots", "hota", "identity")
    by_class = found if only_classes else found.get("per_class", {})
    by_class = {name: values for name, values in by_class.items() if any(values[column] for column in columns)}
    totals = {} if only_classes else {"all": {name: v for name, v in found.items() if not isinstance(v, dict)}}
    groups = {group.lower(): found[group] for group in ("All", "Things", "Stuff") if group in found}
    for title, rows in ((family, totals | groups), (f"{family}, by {each}", by_class)):
        names = columns if rows is by_class else next(iter(rows.values()), ())
        if names and rows:
            table = Table(title, *names, box=SIMPLE_HEAD)
            for name, values in rows.items():
                table.add_row(name, *(text(values[column]) for column in names))
            yield table


def text(value: float | None) -> str:
    """A ratio with four digits, a count as it is, a dash for what is undefined."""
    return "-" if value is None else str(value) if isinstance(value, int) else f"{value:.4f}"


if __name__ == "__main__":
    run(main)
