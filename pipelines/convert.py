"""Convert a dataset from its official layout to shards."""

import argparse
import sys
import time
from pathlib import Path

import _paths  # noqa: F401
from post_platform.cluster import connect
from post_platform.command import check_folder, run, write_json
from post_platform.datasets import readable
from post_platform.progress import Progress
from post_platform.shards.planning import SHARD_BYTES, SplitJob, plan_conversion
from post_platform.shards.write import remaining, write_split
from post_platform.storage import is_remote


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
    write_json(options.json, manifests)


def convert_one(job: SplitJob) -> dict:
    started = time.monotonic()
    name, todo = f"{job.dataset}/{job.split}", remaining(job)
    kept = f", {job.frames - todo} of them ready" if 0 < todo < job.frames else ""
    shards = f"{len(job.shards)} shard{'s' * (len(job.shards) > 1)}"
    print(f"{name}: {job.frames} frames in {shards}, about {job.size / 1e6:.0f} MB{kept}", flush=True)
    with Progress(name, job.frames) as progress:
        manifest = write_split(job, lambda _, done, __: progress.update(done))
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


if __name__ == "__main__":
    run(main)
