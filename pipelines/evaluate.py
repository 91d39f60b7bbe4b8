"""Run a checkpoint over whole sequences of converted datasets and print their official scores."""

import argparse
import json
from pathlib import Path

import _paths  # noqa: F401
from post_platform.command import run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python pipelines/evaluate.py --checkpoint runs/post/checkpoints/step_00060000 --data shards",
    )
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="C", help="checkpoint folder")
    parser.add_argument("--data", default="./shards", metavar="ROOT", help="folder of converted datasets")
    parser.add_argument("--datasets", nargs="+", metavar="NAME", help="default: every converted one with this split")
    parser.add_argument("--split", default="val", help="which split to score (default: val)")
    parser.add_argument("--tracking", choices=("prev_offset", "iou"), default="prev_offset")
    parser.add_argument("--max-frames", type=int, metavar="N", help="score only the first N frames of each sequence")
    parser.add_argument("--tables", type=Path, metavar="FILE", help="save the contingency tables as Parquet")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all scores")
    arguments = parser.parse_args()

    from post_platform import cluster
    from post_platform.metrics import contingency
    from post_platform.training.evaluate import evaluate_checkpoint, mean_score, open_model
    from post_platform.training.launch import splits_of
    from post_platform.training.report import print_scores

    root = str(Path(arguments.data).resolve()) if "://" not in arguments.data else arguments.data
    splits = splits_of(root, tuple(arguments.datasets or ()) or None, arguments.split)
    checkpoint = arguments.checkpoint.resolve()
    open_model(checkpoint)
    cluster.connect()
    found = evaluate_checkpoint(checkpoint, splits, arguments.tracking, arguments.max_frames)
    print_scores(found.scores)
    if arguments.tables:
        contingency.save(contingency.merge(found.tables), arguments.tables)
    if arguments.json:
        result = {"datasets": found.scores, "mean": {"score": mean_score(found.scores)}}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    run(main)
