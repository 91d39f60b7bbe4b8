"""Run a checkpoint over whole sequences of converted datasets and print their official scores."""

import argparse
import sys
from pathlib import Path

import _paths  # noqa: F401
from post_platform.command import run, write_json


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python pipelines/evaluate.py --checkpoint runs/post/best --data shards",
    )
    parser.add_argument(
        "--checkpoint", required=True, metavar="C", help="folder or s3:// address; RUN/best, RUN/latest"
    )
    parser.add_argument(
        "--data", default="./shards", metavar="ROOT", help="converted datasets: a folder or s3:// address"
    )
    parser.add_argument("--datasets", nargs="+", metavar="NAME", help="default: every converted one with this split")
    parser.add_argument("--split", default="val", help="which split to score (default: val)")
    parser.add_argument("--tracking", choices=("prev_offset", "iou"), default="prev_offset")
    parser.add_argument(
        "--allow-shared-videos", action="store_true", help="score also on videos that the checkpoint was trained on"
    )
    parser.add_argument("--max-frames", type=int, metavar="N", help="score only the first N frames of each sequence")
    parser.add_argument("--workers", type=int, metavar="N", help="sequences predicted at once (default: what fits)")
    parser.add_argument("--tables", type=Path, metavar="FILE", help="save the contingency tables as Parquet")
    parser.add_argument(
        "--report", type=Path, metavar="DIR", help="write all scores of every sequence and class, and timelines"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all scores")
    arguments = parser.parse_args()

    from post_platform import cluster, storage
    from post_platform.data.leaks import refuse_shared_videos
    from post_platform.metrics import contingency
    from post_platform.progress import Progress
    from post_platform.training.checkpoint import resolve
    from post_platform.training.evaluate import mean_score, open_model, sequences
    from post_platform.training.report import print_scores
    from post_platform.training.sequence_report import sequence_report, write_report
    from post_platform.training.splits import splits_of, trained_splits
    from post_platform.training.spread import evaluate_checkpoint
    from post_platform.training.timelines import write_timelines

    files = ("json", "tables", "report")
    named = {f"--{name}": getattr(arguments, name) and str(getattr(arguments, name).resolve()) for name in files}
    places = {"--data": arguments.data, "--checkpoint": arguments.checkpoint}
    cluster.refuse_copies(named | {flag: str(storage.absolute(place)) for flag, place in places.items()})
    root = storage.absolute(arguments.data)
    splits = splits_of(root, tuple(arguments.datasets or ()) or None, arguments.split)
    checkpoint = resolve(arguments.checkpoint)  # once: a run that goes on has another newest one later
    open_model(checkpoint)
    if not arguments.allow_shared_videos:
        trained = trained_splits(checkpoint, root)
        if trained is None:
            print("cannot tell whether these videos were trained on: the training shards are gone", file=sys.stderr)
        refuse_shared_videos(trained or (), splits, "--allow-shared-videos")
    cluster.connect()
    frames = sum(found.stop - found.start for found in sequences(splits, arguments.max_frames))
    with Progress("predicting", frames) as progress:
        found = evaluate_checkpoint(
            checkpoint,
            splits,
            arguments.tracking,
            arguments.max_frames,
            timelines=sys.maxsize if arguments.report else 0,
            workers=arguments.workers,
            progress=progress.update,
        )
    print_scores(found.scores)
    if arguments.tables:
        contingency.save(contingency.merge(found.tables), arguments.tables)
    if arguments.report:
        write_report(sequence_report(contingency.merge(found.tables)), arguments.report, "scores")
        write_timelines(found.timelines, arguments.report / "timelines")
    write_json(arguments.json, {"datasets": found.scores, "mean": {"score": mean_score(found.scores)}})


if __name__ == "__main__":
    run(main)
