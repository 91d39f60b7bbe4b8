"""Convert a dataset from its official layout to shards."""

import argparse
import json
import sys
import time
from pathlib import Path

import _paths  # noqa: F401
from post_platform.cluster import connect
from post_platform.command import check_folder, run
from post_platform.datasets import readable
from post_platform.errors import PostError
from post_platform.shards.planning import SHARD_BYTES, SplitJob, plan_conversion
from post_platform.shards.write import remaining, write_split
from post_platform.storage import is_remote

LINE_EVERY = 10  # seconds, where there is no terminal to draw a bar on


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Official layout -> shards: <out>/<dataset>/<split>/*.tar, index.parquet, manifest.json. "
        "Stopped or killed, the same command goes on where it was; a split that is whole and unchanged is left alone.",
        epilog="example: python pipelines/convert.py kitti_mots --source ~/KITTI --out shards",
    )
    parser.add_argument("dataset", metavar="DATASET", help=", ".join(readable()))
    parser.add_argument("--source", required=True, help="folder of the unpacked official download")
    parser.add_argument("--out", required=True, help="root of all shards: a folder or s3://bucket/prefix")
    parser.add_argument("--split", help="one split only (default: every split found)")
    parser.add_argument("--lossless", action="store_true", help="keep PNG images as PNG instead of JPEG quality 95")
    parser.add_argument(
        "--shard-mb", type=int, default=SHARD_BYTES >> 20, help="megabytes per shard, about (%(default)s)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the manifests to FILE")
    options = parser.parse_args()
    if options.shard_mb < 1:
        parser.error("--shard-mb must be at least 1")
    jobs = plan_conversion(
        options.dataset, options.source, options.out, options.split, options.shard_mb << 20, options.lossless
    )
    if not is_remote(options.out):
        check_folder(Path(options.out), "--out")
    if options.json:
        check_folder(Path(options.json).resolve().parent, "--json")
    if any(map(remaining, jobs)):
        print(connect())
    try:
        manifests = [convert_one(job) for job in jobs]
    except KeyboardInterrupt:
        print("the same command goes on where this one stopped", file=sys.stderr)
        raise
    if options.json:
        try:
            Path(options.json).write_text(json.dumps(manifests, indent=1) + "\n")
        except OSError as error:
            raise PostError(f"--json {options.json}: {error.strerror}") from error


def convert_one(job: SplitJob) -> dict:
    started = time.monotonic()
    name, todo = f"{job.dataset}/{job.split}", remaining(job)
    kept = f", {job.frames - todo} of them ready" if 0 < todo < job.frames else ""
    shards = f"{len(job.shards)} shard{'s' * (len(job.shards) > 1)}"
    print(f"{name}: {job.frames} frames in {shards}, about {job.size / 1e6:.0f} MB{kept}", flush=True)
    if sys.stdout.isatty():
        from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
        with Progress(*columns, TimeRemainingColumn()) as bar:
            task = bar.add_task(name, total=job.frames, completed=job.frames - todo, rate="")

            def show(_: str, done: int, total: int) -> None:
                bar.update(task, completed=done, rate=f"{rate(job, todo, done, started):.0f} frames/s")

            manifest = write_split(job, show)
    else:
        manifest = write_split(job, Lines(job, todo))
    seconds = time.monotonic() - started
    counts = {
        "labelled": manifest["labelled_frames"],
        "sequences": manifest["sequences"],
        "classes": len(manifest["classes"]),
    }
    summary = ", ".join(f"{count} {what}" for what, count in counts.items())
    megabytes = sum(shard["size"] for shard in manifest["shards"]) / 1e6
    work = f"{todo / seconds:.0f} frames/s, {seconds:.1f} s" if todo else "was ready"
    print(f"{name}: {summary}, {megabytes:.1f} MB; {work} -> {job.folder}", flush=True)
    return manifest


def rate(job: SplitJob, todo: int, done: int, started: float) -> float:
    """Frames per second of this call, not counting those that an earlier one left."""
    return (done - (job.frames - todo)) / max(time.monotonic() - started, 1e-9)


class Lines:
    """Progress as plain lines: the first within seconds, then one every ten."""

    def __init__(self, job: SplitJob, todo: int) -> None:
        self.job, self.todo, self.started, self.due = job, todo, time.monotonic(), 0.0

    def __call__(self, split: str, done: int, total: int) -> None:
        """Print a line if one is due."""
        if time.monotonic() < self.due or done == total:
            return
        self.due = time.monotonic() + LINE_EVERY
        speed = rate(self.job, self.todo, done, self.started)
        left = f"{(total - done) / speed:.0f} s left" if speed > 0 else "time left not known yet"
        print(f"{self.job.dataset}/{split}: {done} of {total} frames, {speed:.0f} frames/s, {left}", flush=True)


if __name__ == "__main__":
    run(main)
