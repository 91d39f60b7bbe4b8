"""Milliseconds per frame of our scores beside pixel-by-pixel ones, TrackEval and pycocotools, which must say the same.

One run, in turns, medians of CPU time, which other work on the machine disturbs less than it does the clock: the
evaluation set of the tests (375x1242) and scenes of 1024x2048 made here. Before that the time and the memory of 40, 400
and 4000 frames, and the table of noise beside a sort.

Run: python benchmarks/metrics.py [--rounds N] [--most-frames N] (about 6 minutes)
"""

import argparse
import contextlib
import io
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "platform"))

import numpy as np
import pyarrow as pa
import trackeval
from metrics_by_pixels import mean_iou, pairs, segmentation_and_tracking_quality, segments, video_panoptic_quality
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from post_platform.labels import load_contract
from post_platform.metrics import hota, identity, mask_ap, mots, panoptic_quality, semantic_iou, stq, vpq
from post_platform.metrics.contingency import merge
from post_platform.metrics.results import FramePair, ResultFrame, read_results, write_results
from post_platform.metrics.score import score
from post_platform.metrics.segments import Rows, rows_of
from post_platform.metrics.similarity import objects_of

EVALSET = Path(__file__).resolve().parent.parent / "tests" / "data" / "evalset"
STEP, MOTS = load_contract("kitti_step"), load_contract("kitti_mots")
NAMES = {entry.id: entry.name for entry in STEP.classes}
THINGS = {entry.id: entry.name for entry in STEP.classes if entry.has_instances}
TRACKED = {entry.id: entry.name for entry in MOTS.classes}
WINDOWS = (1, 2, 3, 4)
TO_MOTS = np.zeros(256, np.uint8)
TO_MOTS[[13, 11]] = 1, 2  # car, person
CROWD = 65535
_job: Callable[[], list[float]]


def write_scenes(folder: Path, height: int = 1024, width: int = 2048, frames: int = 6, objects: int = 60) -> None:
    """Two videos of bands with moving ellipses, and results in which each is off by a few pixels, or lost, or renamed.

    Written as the evaluation set is. The truth has a void box and a crowd of people.
    """
    rows, columns = np.mgrid[:height, :width]
    step: dict[str, list[ResultFrame]] = {"gt": [], "pred": []}
    for sequence in ("0000", "0001"):
        random = np.random.default_rng(int(sequence))
        kinds = random.choice([11, 13], objects)
        start = random.integers((0, 0), (height, width), (objects, 2))
        move = random.integers(-12, 13, (objects, 2))
        radii = random.integers((height // 60, width // 120), (height // 8, width // 20), (objects, 2))
        for frame in range(frames):
            for side, off in (("gt", 0), ("pred", 6)):
                classes = (rows * 5 // height).astype(np.uint8)
                tracks = np.zeros((height, width), np.int32)
                for number in range(objects):
                    if off and random.random() < 0.1:
                        continue
                    y, x = start[number] + frame * move[number] + random.integers(-off, off + 1, 2)
                    inside = ((rows - y) / radii[number, 0]) ** 2 + ((columns - x) / radii[number, 1]) ** 2 <= 1
                    renamed = objects if off and frame >= frames // 2 and number % 7 == 0 else 0
                    classes[inside], tracks[inside] = kinds[number], number + 1 + renamed
                if not off:
                    classes[:60, :200], tracks[:60, :200] = 255, 0
                    classes[60:120, :200], tracks[60:120, :200] = 11, CROWD
                step[side].append(ResultFrame(sequence, frame, classes, tracks, {}))
    for side, found in step.items():
        write_results("kitti_step", found, folder / f"step_{side}")
        as_mots = [replace(item, classes=TO_MOTS[item.classes]) for item in found]
        write_results("kitti_mots", as_mots, folder / f"mots_{side}_txt")


@dataclass(frozen=True)
class Scenes:
    """A set: its folders, its decoded videos, and the confidences of a frame's things by (sequence, frame)."""

    folder: Path
    videos: dict[str, list[Any]]
    confidences: dict[tuple[str, int], dict[tuple[int, int], float]]

    @property
    def frames(self) -> int:
        """Of all videos."""
        return sum(map(len, self.videos.values()))

    def table(self, pair: Any, copy: str = "") -> pa.Table:
        """Of one frame; `copy` makes its sequence another one."""
        scores = self.confidences[pair.sequence, pair.frame]
        return replace(pair, sequence=pair.sequence + copy, pred_scores=scores).table("kitti_step")

    def tables(self, copy: str = "") -> list[pa.Table]:
        """One per frame, from the decoded maps."""
        return [self.table(pair, copy) for video in self.videos.values() for pair in video]

    def tables_of_files(self) -> list[pa.Table]:
        """The same from the PNGs."""
        results = step_results(self.folder)
        return [self.table(pair) for pair in results.read(list(results.counts))]

    def tables_of_texts(self) -> list[pa.Table]:
        """Of the MOTS texts."""
        results = read_results("kitti_mots", self.folder / "mots_gt_txt", self.folder / "mots_pred_txt")
        return [pair.table("kitti_mots") for pair in results.read(list(results.counts))]


def step_results(folder: Path) -> Any:
    """Ours, of the PNG folders."""
    return read_results("kitti_step", folder / "step_gt", folder / "step_pred")


def decode(folder: Path) -> Scenes:
    """All maps in memory, with a different confidence for each predicted thing of a frame."""
    random = np.random.default_rng(0)
    results, videos, confidences = step_results(folder), {}, {}
    for name in results.counts:
        videos[name] = [
            FramePair(name, int(path.stem), *_maps(path, CROWD), *_maps(folder / "step_pred" / name / path.name, 0))
            for path in sorted((folder / "step_gt" / name).glob("*.png"))
        ]
        for pair in videos[name]:
            values = np.unique(segments(pair.pred_classes, pair.pred_tracks)).tolist()
            keys = [(value >> 16, value & 0xFFFF) for value in values if value >> 16 in THINGS]
            ranks = random.permutation(len(keys)) / max(len(keys), 1)
            confidences[name, pair.frame] = dict(zip(keys, ranks.tolist(), strict=True))
    return Scenes(folder, videos, confidences)


def _maps(path: Path, unidentified: int) -> tuple[np.ndarray, np.ndarray]:
    """Classes and ids of a STEP PNG; a thing of id 0 has the one given."""
    classes, high, low = np.moveaxis(np.asarray(Image.open(path)), -1, 0)
    ids = high.astype(np.int32) * 256 + low
    return np.ascontiguousarray(classes), np.where(np.isin(classes, list(THINGS)) & (ids == 0), unidentified, ids)


def read_with_pillow(folder: Path) -> int:
    """Both PNGs of every frame as arrays, and nothing else."""
    return sum(np.asarray(Image.open(path)).size for path in folder.glob("step_*/*/*.png"))


class TrackEval:
    """The real one, on the MOTS texts: HOTA, CLEAR and Identity of both classes."""

    def __init__(self, scenes: Scenes) -> None:
        self.lengths = {name: len(video) for name, video in scenes.videos.items()}
        self.config = {
            "PRINT_CONFIG": False, "SEQ_INFO": self.lengths, "GT_LOC_FORMAT": "{gt_folder}/{seq}.txt",
            "GT_FOLDER": str(scenes.folder / "mots_gt_txt"), "TRACKERS_FOLDER": str(scenes.folder),
            "TRACKERS_TO_EVAL": ["mots_pred_txt"], "TRACKER_SUB_FOLDER": "",
        }  # fmt: skip
        self.load()

    def load(self) -> None:
        """Read the texts, and all IoUs."""
        self.dataset = trackeval.datasets.KittiMOTS(self.config)
        self.raw = {name: self.dataset.get_raw_seq_data("mots_pred_txt", name) for name in self.lengths}

    def evaluate(self) -> dict[str, tuple[float, ...]]:
        """Class -> HOTA, DetA, AssA, sMOTSA, MOTSA, switches, IDF1 over both sequences."""
        found = {}
        for name in TRACKED.values():
            data = {key: self.dataset.get_preprocessed_seq_data(raw, name) for key, raw in self.raw.items()}
            values: dict[str, Any] = {}
            quiet = {"PRINT_CONFIG": False}
            metrics = (trackeval.metrics.HOTA(), trackeval.metrics.CLEAR(quiet), trackeval.metrics.Identity(quiet))
            for metric in metrics:
                values |= metric.combine_sequences({key: metric.eval_sequence(item) for key, item in data.items()})
            means = tuple(float(np.mean(values[key])) for key in ("HOTA", "DetA", "AssA"))
            found[name] = (*means, values["sMOTA"], values["MOTA"], values["IDSW"], values["IDF1"])
        return found


def our_tracks(rows: Rows, numbers: Mapping[int, str]) -> dict[str, tuple[float, ...]]:
    """What TrackEval's `evaluate` says, from a table."""
    found = {}
    for number, name in numbers.items():
        objects = objects_of(rows, number)
        overlap, counts = hota.report(objects, number), mots.report(objects, number, "trackeval")
        values = [overlap[key] for key in ("HOTA", "DetA", "AssA")] + [
            counts[key] for key in ("sMOTSA", "MOTSA", "IDS")
        ]
        found[name] = (*values, identity.report(objects, number)["IDF1"])
    return found


class Pycocotools:
    """The real COCOeval, on the run lengths of every thing."""

    def __init__(self, scenes: Scenes) -> None:
        truth, found = [], []
        pairs = [pair for video in scenes.videos.values() for pair in video]
        for image, pair in enumerate(pairs, start=1):
            for native, number, rle in masks(pair.truth_classes, pair.truth_instances):
                entry = {"id": len(truth) + 1, "iscrowd": int(number == CROWD), "area": float(coco_mask.area(rle))}
                truth.append({**entry, "image_id": image, "category_id": native, "segmentation": rle})
            scores = scenes.confidences[pair.sequence, pair.frame]
            for native, number, rle in masks(pair.pred_classes, pair.pred_tracks):
                score = scores[native, number]
                found.append({"image_id": image, "category_id": native, "segmentation": rle, "score": score})
        with contextlib.redirect_stdout(io.StringIO()):
            self.truth = COCO()
            images = [{"id": number, "height": 1, "width": 1} for number in range(1, len(pairs) + 1)]
            self.truth.dataset = {"images": images, "annotations": truth, "categories": [{"id": n} for n in THINGS]}
            self.truth.createIndex()
            self.found = self.truth.loadRes(found)

    def evaluate(self) -> list[float]:
        """AP, AP50, AP75."""
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(self.truth, self.found, "segm")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return evaluation.stats[:3].tolist()


def masks(classes: np.ndarray, identities: np.ndarray) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Class, identity and run lengths of every thing."""
    image = segments(classes, identities)
    for value in np.unique(image).tolist():
        if value >> 16 in THINGS:
            yield value >> 16, value & 0xFFFF, coco_mask.encode(np.asfortranarray(image == value, np.uint8))


def medians(work: Mapping[str, Callable[[], Any]], frames: int, rounds: int) -> tuple[dict[str, float], dict[str, Any]]:
    """CPU milliseconds per frame of each, taken in turns after a first call of all, and what each returned."""
    results = {name: function() for name, function in work.items()}
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, function in work.items():
            start = time.process_time()
            function()
            times[name].append((time.process_time() - start) / frames * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}, results


def compare(title: str, scenes: Scenes, rounds: int) -> None:
    """Time and check one set; print its table."""
    rows = rows_of(merge(scenes.tables()))
    texts = rows_of(merge(scenes.tables_of_texts()))
    official, coco, videos = TrackEval(scenes), Pycocotools(scenes), scenes.videos
    ms, found = medians(
        {
            "table": scenes.tables,
            "rows": lambda: rows_of(merge(scenes.tables())),
            "PQ": lambda: panoptic_quality.report(rows, NAMES, THINGS)["All"]["pq"],
            "mIoU": lambda: semantic_iou.report(rows, NAMES)["mIoU"],
            "STQ": lambda: stq.report(rows, NAMES, THINGS)["STQ"],
            "VPQ": lambda: list(vpq.report(rows, NAMES, THINGS, WINDOWS).values())[: len(WINDOWS)],
            "tracks": lambda: our_tracks(rows, THINGS),
            "AP": lambda: list(mask_ap.report(rows, THINGS).values())[:3],
            "all": lambda: score(merge(scenes.tables()), STEP),
            "all, files": lambda: score(merge(scenes.tables_of_files()), STEP),
            "texts, load": lambda: rows_of(merge(scenes.tables_of_texts())),
            "texts, evaluate": lambda: our_tracks(texts, TRACKED),
            "their PQ": lambda: video_panoptic_quality(videos, 1),
            "their mIoU": lambda: mean_iou(videos, len(NAMES)),
            "their STQ": lambda: segmentation_and_tracking_quality(videos, THINGS),
            "their VPQ": lambda: [video_panoptic_quality(videos, k) for k in WINDOWS],
            "their AP": coco.evaluate,
            "their texts, load": official.load,
            "their texts, evaluate": official.evaluate,
            "their files": lambda: read_with_pillow(scenes.folder),
        },
        scenes.frames,
        rounds,
    )
    for name in ("PQ", "mIoU", "STQ", "VPQ", "AP"):
        np.testing.assert_allclose(found[name], found[f"their {name}"], rtol=1e-9, err_msg=name)
    for name, values in found["texts, evaluate"].items():
        np.testing.assert_allclose(values, found["their texts, evaluate"][name], rtol=1e-9, err_msg=name)
    assert found["all"] == found["all, files"]

    print(f"\n{title}: {scenes.frames} frames, {len(rows.pixels) / scenes.frames:.0f} rows a frame; ms per frame")
    print(f"{'':34}{'ours':>8}{'others':>9}{'ratio':>7}")
    shared = ms["rows"]

    def line(name: str, ours: float, others: float | None = None) -> None:
        print(f"{name:34}{ours:8.2f}" + (f"{others:9.2f}{others / ours:7.1f}" if others else ""))

    line("table of a frame", ms["table"])
    line("  as arrays of all frames", shared)
    for name in ("PQ", "mIoU", "STQ", "VPQ", "AP"):
        line(f"{name}, table ready", ms[name])
        line(f"{name}, from maps", ms[name] + shared, ms[f"their {name}"])
    line("MOTS HOTA identity, table ready", ms["tracks"])
    line("  from texts: load", ms["texts, load"], ms["their texts, load"])
    line("  from texts: evaluate", ms["texts, evaluate"], ms["their texts, evaluate"])
    ours, theirs = ms["texts, load"] + ms["texts, evaluate"], ms["their texts, load"] + ms["their texts, evaluate"]
    line("  from texts", ours, theirs)
    everything = sum(ms[f"their {name}"] for name in ("PQ", "mIoU", "STQ", "VPQ", "AP")) + theirs
    line("everything, from maps", ms["all"], everything)
    line("everything, from PNGs", ms["all, files"], everything + ms["their files"])
    line("  (two PNGs with Pillow alone)", ms["their files"])


def grow(scenes: Scenes, most: int) -> None:
    """Time and memory by number of frames: the set again and again, as further sequences."""
    print(f"\n{'':8}ms per frame            KB per frame: tables, and the most memory while they are made and scored")
    print("  frames  tables  scores  with AP  tables   scores  with AP")
    frames = scenes.frames
    while frames <= most:
        (counting, plain, size, peak), (_, ranked, _, highest) = (
            alone(partial(grown, scenes, frames, with_ap)) for with_ap in (False, True)
        )
        print(f"{frames:8}{counting:8.2f}{plain:8.2f}{ranked:9.2f}{size:8.1f}{peak:9.1f}{highest:9.1f}")
        frames *= 10


def grown(scenes: Scenes, frames: int, with_ap: bool) -> list[float]:
    """Milliseconds per frame for tables and scores, and kilobytes per frame of the tables and of the peak."""
    score(merge(scenes.tables()), STEP)  # what the first time alone takes
    before, started = peak_mb(), time.process_time()
    table = merge([merge(scenes.tables(f"_{copy}")) for copy in range(frames // scenes.frames)])
    counted = time.process_time()
    if not with_ap:
        place = table.schema.get_field_index("pred_score")
        table = table.set_column(place, table.schema.field(place), pa.nulls(table.num_rows, pa.float64()))
    score(table, STEP)
    scored = time.process_time()
    ms = [(b - a) / frames * 1e3 for a, b in ((started, counted), (counted, scored))]
    return [*ms, table.nbytes / frames * 1e-3, (peak_mb() - before) / frames * 1e3]


def alone(job: Callable[[], list[float]]) -> list[float]:
    """What a function gives in a process of its own, whose peak nothing else has raised."""
    global _job
    _job = job  # what a forked process has already, no pickle need carry
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        return pool.submit(_call).result()


def _call() -> list[float]:
    return _job()


def peak_mb() -> float:
    """The most memory this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1.024e-3


def noise(scenes: Scenes, repeats: int) -> None:
    """The table of one frame, when a share of the predicted classes is random: an untrained network."""
    print(f"\n{'one frame, random pixels':34}{'table':>8}{'sort':>9}{'ratio':>7}")
    pair = next(iter(scenes.videos.values()))[5]
    random = np.random.default_rng(1)
    for share in (0.0, 0.02, 0.3, 1.0):
        wrong = random.random(pair.pred_classes.shape) < share
        changed = np.where(wrong, random.integers(0, 19, wrong.shape), pair.pred_classes).astype(np.uint8)
        noisy = replace(pair, pred_classes=changed)
        ms, found = medians({"ours": partial(rows_of_table, noisy), "sort": partial(rows_of_sort, noisy)}, 1, repeats)
        assert found["ours"] == found["sort"]
        print(f"{share:34.0%}{ms['ours']:8.2f}{ms['sort']:9.2f}{ms['sort'] / ms['ours']:7.1f}")


def rows_of_table(pair: Any) -> int:
    """How many rows the table has."""
    return int(pair.table("kitti_step").num_rows)


def rows_of_sort(pair: Any) -> int:
    """The same number from a sort of all pixels."""
    sides = ((pair.truth_classes, pair.truth_instances), (pair.pred_classes, pair.pred_tracks))
    return len(pairs(*(segments(*side) for side in sides)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--most-frames", type=int, default=4000)
    args = parser.parse_args()
    small = decode(EVALSET)
    grow(small, args.most_frames)
    noise(small, 5 * args.rounds)
    compare("375x1242", small, args.rounds)
    with tempfile.TemporaryDirectory() as folder:
        write_scenes(Path(folder))
        compare("1024x2048", decode(Path(folder)), args.rounds)


if __name__ == "__main__":
    main()
