"""Verify converted shards against their index and manifest; optionally draw a contact sheet."""

import argparse
from dataclasses import asdict

import numpy as np
from PIL import Image

import _paths  # noqa: F401
from post_platform import render, storage
from post_platform.command import run, write_json
from post_platform.datasets import reader
from post_platform.errors import DataError, PostError
from post_platform.labels import load_contract, thing_table
from post_platform.progress import Progress
from post_platform.shards import record
from post_platform.shards.check import Report, check
from post_platform.shards.index import locate, read_split

SHOWN_PROBLEMS = 20


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Compare a converted dataset with its index and manifest: ranges, order and sizes of everything, "
        "the pixels of a sample.",
        epilog="example: python pipelines/check.py shards/kitti_mots --figure kitti_mots.png",
    )
    parser.add_argument("dataset", metavar="ROOT/DATASET[/SPLIT]", help="a converted dataset, or one split of it")
    parser.add_argument("--split", help="one split only (default: every converted split)")
    parser.add_argument("--full", action="store_true", help="decode every frame and hash every shard")
    parser.add_argument("--figure", metavar="F.png", help="contact sheet: sampled frames, image beside label")
    parser.add_argument("--samples", type=int, default=3, help="frames per split in the figure (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the reports to FILE")
    options = parser.parse_args()
    if options.samples < 1:
        parser.error("--samples must be at least 1")
    root, dataset, splits = locate(options.dataset, options.split)
    splits.sort(key=reader(dataset).SPLITS.index)
    reports = [check_one(root, dataset, split, options.full) for split in splits]
    write_json(options.json, [asdict(report) for report in reports])
    try:
        if options.figure:
            Image.fromarray(contact_sheet(root, dataset, splits, options.samples)).save(options.figure)
            print(f"figure: {options.figure}")
    except (OSError, ValueError) as error:
        raise PostError(f"cannot write: {error}") from error
    damaged = [report for report in reports if report.problems]
    if damaged:
        count = sum(len(report.problems) for report in damaged)
        names = ", ".join(f"{report.dataset}/{report.split}" for report in damaged)
        raise DataError(f"{names}: {count} problem{'s' * (count > 1)}, first {damaged[0].problems[0]}", damaged[0].hint)


def check_one(root: str, dataset: str, split: str, full: bool) -> Report:
    with Progress(f"{dataset}/{split}", None, "shards") as progress:

        def show(done: int, total: int) -> None:
            progress.total = total
            progress.update(done)

        report = check(root, dataset, split, full, show)
    state = f"{len(report.problems)} problems" if report.problems else "ok"
    sampled = ""
    if report.decoded < report.frames or report.hashed < report.shards:
        sampled = f" (decoded {report.decoded} frames, hashed {report.hashed} shards; all of them: --full)"
    shards = f"{report.shards} shard{'s' * (report.shards != 1)}"
    print(f"{dataset}/{split}: {report.frames} frames in {shards}: {state}{sampled}")
    for problem in report.problems[:SHOWN_PROBLEMS]:
        print(f"  {problem}")
    if len(report.problems) > SHOWN_PROBLEMS:
        print(f"  ... and {len(report.problems) - SHOWN_PROBLEMS} more (all of them with --json)")
    return report


def contact_sheet(root: str, dataset: str, splits: list[str], samples: int) -> np.ndarray:
    """Evenly spaced frames of every split, image | label; frames that cannot be read are left out."""
    contract = load_contract(dataset)
    colors, things = render.palette(contract), thing_table(contract)
    rows: list[list[np.ndarray]] = []
    captions: list[list[str]] = []
    for split in splits:
        found = read_split(root, dataset, split)
        total = found.index.num_rows
        chosen = sorted({round(place) for place in np.linspace(0, total - 1, min(samples + 2, total))[1:-1].tolist()})
        for row in found.index.take(chosen or list(range(total))).to_pylist():
            try:
                data = storage.read_range(storage.join(found.folder, row["shard"]), row["offset"], row["length"])
                frame = record.decode(data, f"{dataset}/{split}/{row['shard']}")
            except DataError:
                continue
            painted = render.overlay(frame.image, frame.classes, frame.instances, colors, things)
            rows.append([frame.image, painted])
            captions.append([f"{split} {frame.key}", describe(frame, things) if row["labelled"] else "not labelled"])
    if not rows:
        raise DataError(f"{dataset}: no readable frame to draw", hint="see the problems above")
    return render.contact_sheet(rows, ["image", "label"], captions, scale=2 if rows[0][0].shape[1] < 400 else 1)


def describe(frame: record.Record, things: np.ndarray) -> str:
    objects = (frame.instances > 0) & (frame.instances < 65535) & things[frame.classes]
    count = len(np.unique(frame.classes[objects].astype(np.int64) << 16 | frame.instances[objects]))
    present = len(set(np.unique(frame.classes).tolist()) - {255})
    void = 100 * float((frame.classes == 255).mean())
    return f"{count} objects, {present} classes, {void:.0f}% void"


if __name__ == "__main__":
    run(main)
