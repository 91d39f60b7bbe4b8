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
from post_platform.shards.write import SHARD_BYTES, SplitJob, plan_conversion, write_split
from post_platform.storage import is_remote


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Official layout -> shards: <out>/<dataset>/<split>/*.tar, index.parquet, manifest.json.",
        epilog="example: python pipelines/convert.py kitti_mots --source ~/KITTI --out shards",
    )
    parser.add_argument("dataset", metavar="DATASET", help=", ".join(readable()))
    parser.add_argument("--source", required=True, help="folder of the unpacked official download")
    parser.add_argument("--out", required=True, help="root of all shards: a folder or s3://bucket/prefix")
    parser.add_argument("--split", help="one split only (default: every split found)")
    parser.add_argument("--lossless", action="store_true", help="keep PNG images as PNG instead of JPEG quality 95")
    parser.add_argument(
        "--shard-mb", type=int, default=SHARD_BYTES >> 20, help="source megabytes per shard (%(default)s)"
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
    print(connect())
    manifests = [convert_one(job) for job in jobs]
    if options.json:
        try:
            Path(options.json).write_text(json.dumps(manifests, indent=1) + "\n")
        except OSError as error:
            raise PostError(f"--json {options.json}: {error.strerror}") from error


def convert_one(job: SplitJob) -> dict:
    started = time.monotonic()
    name = f"{job.dataset}/{job.split}"
    if sys.stdout.isatty():
        from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

        with Progress(*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn()) as bar:
            task = bar.add_task(name, total=job.frames)
            manifest = write_split(job, lambda _, done, total: bar.update(task, completed=done, total=total))
    else:
        print(f"{name}: {job.frames} frames in {len(job.shards)} shards", flush=True)
        manifest = write_split(job, lambda _, done, total: print(f"{name}: {done} of {total} frames", flush=True))
    megabytes = sum(shard["size"] for shard in manifest["shards"]) / 1e6
    seconds = time.monotonic() - started
    counts = {
        "frames": manifest["frames"],
        "labelled": manifest["labelled_frames"],
        "sequences": manifest["sequences"],
        "classes": len(manifest["classes"]),
        "shards": len(manifest["shards"]),
    }
    summary = ", ".join(f"{count} {what}" for what, count in counts.items())
    print(f"{name}: {summary}, {megabytes:.1f} MB in {seconds:.1f} s -> {job.folder}")
    return manifest


if __name__ == "__main__":
    run(main)
