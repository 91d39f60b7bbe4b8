"""Write labels, or a checkpoint's predictions, in a dataset's official result format."""

import argparse
import tempfile
from pathlib import Path

import _paths  # noqa: F401
from post_platform.command import check_folder, run
from post_platform.errors import ConfigError
from post_platform.progress import Progress


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__ + " What is written is what score.py and the official tools and servers read.",
        epilog="example: python pipelines/export.py shards/kitti_step --checkpoint runs/post/best --out results",
    )
    parser.add_argument("dataset", metavar="ROOT/DATASET[/SPLIT]", help="a converted dataset, or one split of it")
    parser.add_argument("--out", required=True, metavar="DIR", help="a new or empty folder, or s3:// address")
    parser.add_argument("--split", help="one split (default: val, or the only one)")
    parser.add_argument("--checkpoint", metavar="C", help="write its predictions (default: the labels)")
    parser.add_argument("--tracking", choices=("prev_offset", "iou"), help="default: the first that it can")
    parser.add_argument("--sequences", nargs="+", metavar="NAME", help="these only (default: all)")
    options = parser.parse_args()

    from post_platform import storage
    from post_platform.export import count_frames, label_frames, predicted_frames
    from post_platform.metrics.results import write_results
    from post_platform.shards.index import locate, read_split

    root, dataset, splits = locate(options.dataset, options.split)
    if len(splits) > 1 and "val" not in splits:
        raise ConfigError(f"{options.dataset} has the splits {', '.join(splits)}", "name one: --split SPLIT")
    split = read_split(root, dataset, splits[0] if len(splits) == 1 else "val")
    out = storage.absolute(options.out)
    if Path(out).is_file() or storage.list_names(out):
        raise ConfigError(f"--out {out} is not empty", "name another: --out DIR")
    if not storage.is_remote(out):
        check_folder(Path(out), "--out")
    wanted = options.sequences
    total = count_frames(split, wanted, labelled=options.checkpoint is None)
    if not total:
        raise ConfigError(f"{dataset}/{split.split} has no labels to export", "its predictions: --checkpoint C")
    if options.checkpoint is None:
        frames = label_frames(split, wanted)
    else:
        frames = predicted_frames(options.checkpoint, split, options.tracking, wanted)
    with tempfile.TemporaryDirectory() as temporary, Progress(f"{dataset}/{split.split}", total) as progress:
        folder = Path(temporary if storage.is_remote(out) else out)
        write_results(dataset, progress.over(frames), folder)
        for name in storage.list_files(folder) if storage.is_remote(out) else ():
            storage.upload_file(folder / name, storage.join(out, name))
    print(f"{dataset}/{split.split}: {total} frames -> {out}")
    print(f"score them: python pipelines/score.py {dataset} --truth <official labels> --predictions {out}")


if __name__ == "__main__":
    run(main)
