"""Random little RobMOTS benchmarks, scored by the installed TrackEval from the same files: every number is equal.

Small and spurious predictions, ignore regions under and beside objects, ignored and foreign classes are common, and
coordinates are coarse, so that exact halves are; `test_the_benchmarks_are_hard` holds the generator to that.
"""

import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import trackeval
from hypothesis import given, settings
from hypothesis import strategies as st
from official_bytes import compressed, write

from post_platform.metrics.results import count_results, read_results, rob_mots
from post_platform.metrics.score import flat, headline, score

CLASSES = {"person": 1, "car": 3}
HEIGHT, WIDTH = 24, 40  # objects of up to 3 pixels are small
EVALUATOR = {
    "PRINT_RESULTS": False, "PRINT_CONFIG": False, "TIME_PROGRESS": False, "OUTPUT_SUMMARY": False,
    "OUTPUT_DETAILED": False, "PLOT_CURVES": False, "LOG_ON_ERROR": None, "BREAK_ON_ERROR": True,
}  # fmt: skip


def lines(frame, drawn):
    return "".join(
        f"{frame} {track} {category} 0.5 {HEIGHT} {WIDTH} {compressed(mask)}\n"
        for track, category, mask in sorted(drawn, key=lambda one: one[0])
    )


def rectangle(random, sizes=(2, 3, 4, 8, 12)):
    mask = np.zeros((HEIGHT, WIDTH), int)
    y, x = 2 * random.integers(0, 8), 2 * random.integers(0, 14)
    mask[y : y + random.choice(sizes), x : x + random.choice(sizes)] = 1
    return mask


def disjoint(drawn):
    """The same without what lies under later ones."""
    found, taken = [], np.zeros((HEIGHT, WIDTH), int)
    for track, category, mask in reversed(drawn):
        rest = mask * (1 - taken)
        taken |= mask
        if rest.any():
            found.append((track, category, rest))
    return found


def write_sequence(random, truth, pred, frames=4):
    """A few objects that stay, found whole, moved, in halves or not, and what is found where nothing is."""
    objects = [(n, int(random.choice([1, 3])), rectangle(random)) for n in range(1, random.integers(2, 6))]
    true, found = "", ""
    for frame in range(frames):
        here = disjoint([one for one in objects if random.random() < 0.8])
        regions = [(50 + n, int(random.choice([100, 101, 103])), rectangle(random)) for n in range(random.integers(3))]
        true += lines(frame, here + regions)
        said = []
        for track, category, mask in here:
            kind = random.choice(["same", "moved", "half", "lost", "other class"], p=[0.3, 0.2, 0.3, 0.1, 0.1])
            said_class = 4 - category if kind == "other class" else category
            if kind == "half":
                columns = np.flatnonzero(mask.any(0))
                cut = columns[len(columns) // 2]
                left, right = mask.copy(), mask.copy()
                left[:, cut:], right[:, :cut] = 0, 0
                said += [(track, said_class, left), (track + 20, said_class, right)]
            elif kind != "lost":
                said.append((track, said_class, np.roll(mask, int(kind == "moved"), 1)))
        spurious = [(40 + n, int(random.choice([1, 3, 5])), rectangle(random)) for n in range(random.integers(4))]
        found += lines(frame, disjoint([one for one in spurious + said if one[2].any()]))
    write(truth, true)
    write(pred, found)


def write_benchmarks(folder, seed):
    random = np.random.default_rng(seed)
    for benchmark in ("kitti_mots", "ovis"):
        seqmap = ""
        for name in ("0001", "0002"):
            files = (
                folder / f"gt/train/{benchmark}/data/{name}.txt",
                folder / f"pred/train/ours/data/{benchmark}/{name}.txt",
            )
            write_sequence(random, *files)
            ignored = " ".join(str(number) for number in (1, 3) if random.random() < 0.2)
            seqmap += f"{name} 4 {HEIGHT} {WIDTH} {ignored}".strip() + "\n"
        write(folder / f"gt/train/{benchmark}/seqmap.txt", seqmap)
        write(folder / f"gt/train/{benchmark}/clsmap.txt", "1 3\n")


def theirs(folder, benchmark):
    dataset = trackeval.datasets.RobMOTS({
        "PRINT_CONFIG": False, "TRACKERS_TO_EVAL": ["ours"], "GT_FOLDER": str(folder / "gt"),
        "TRACKERS_FOLDER": str(folder / "pred"), "SPLIT_TO_EVAL": "train", "SUB_BENCHMARK": benchmark,
    })  # fmt: skip
    quiet = {"PRINT_CONFIG": False}
    metrics = [trackeval.metrics.HOTA(), trackeval.metrics.CLEAR(quiet), trackeval.metrics.Identity(quiet)]
    found, _ = trackeval.Evaluator(EVALUATOR).evaluate([dataset], metrics)
    return found[f"RobMOTS.{benchmark}"]["ours"]["COMBINED_SEQ"]


def ours(folder, sequences=None):
    results = read_results("rob_mots", folder / "gt/train", folder / "pred/train/ours", sequences)
    return score(count_results(results), results.contract, further=results.further()), results.contract


HOTA = ("HOTA", "DetA", "AssA", "DetRe", "DetPr", "AssRe", "AssPr", "LocA")
MOTS = {"MOTSA": "MOTA", "sMOTSA": "sMOTA", "MOTSP": "MOTP", "TP": "CLR_TP", "FP": "CLR_FP", "FN": "CLR_FN",
        "IDS": "IDSW", "Frag": "Frag", "MT": "MT", "ML": "ML"}  # fmt: skip
IDENTITY = ("IDF1", "IDP", "IDR", "IDTP", "IDFP", "IDFN")


def assert_same(found, official, undefined=0.0):
    assert official == pytest.approx(undefined if found is None else found, abs=1e-9)


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(st.integers(0, 2**32 - 1))
def test_equals_trackeval(seed):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_benchmarks(folder, seed)
        together, contract = ours(folder)
        finals = []
        for benchmark in ("kitti_mots", "ovis"):
            official = theirs(folder, benchmark)
            found, _ = ours(folder, [f"{benchmark}-0001", f"{benchmark}-0002"])
            for name in CLASSES:
                expected, clear = official[name], found["mots"][name]
                for metric in HOTA:
                    assert_same(found["hota"][name][metric], expected["HOTA"][metric].mean(), float(metric == "LocA"))
                for metric, their in MOTS.items():  # without a true object TrackEval divides by 1
                    assert_same(
                        clear[metric], expected["CLEAR"][their], -float(clear["FP"]) * (metric in ("MOTSA", "sMOTSA"))
                    )
                for metric in IDENTITY:
                    assert_same(found["identity"][name][metric], expected["Identity"][metric])
            kinds = {kind: {m: official[key]["HOTA"][m].mean() for m in HOTA} for kind, key in
                     (("cls_av", "cls_comb_cls_av"), ("det_av", "all"))}  # fmt: skip
            kinds["final"] = {m: np.sqrt(kinds["cls_av"][m] * kinds["det_av"][m]) for m in HOTA}
            for kind, values in kinds.items():
                assert together["rob_mots"][benchmark][kind] == pytest.approx(values, abs=1e-9)
            finals.append(kinds["final"]["HOTA"])
        assert headline(flat(together), contract) == pytest.approx(np.mean(finals), abs=1e-9)


def test_the_benchmarks_are_hard(tmp_path, monkeypatch):
    """In how many frames of 20 benchmarks what is hard to get right happens to a class, or without classes."""
    seen = Counter()
    inside, without_excuse = rob_mots._inside, rob_mots._without_excuse

    def seen_inside(true, found, codes):
        result = inside(true, found, codes)
        seen["in an ignore region and not small"] += bool((result & (found.sides * 8 > HEIGHT)).any())
        return result

    def seen_excuse(iou, excused):
        counted = without_excuse(iou, excused)
        seen["dropped"] += bool((~counted).any())
        seen["kept, being matched"] += bool((counted & excused).any())
        seen["spurious"] += bool((counted & (iou < 0.5).all(0)).any())
        seen["halves that compete, one is dropped"] += bool(((iou == 0.5).any(0) & ~counted).any())
        return counted

    monkeypatch.setattr(rob_mots, "_inside", seen_inside)
    monkeypatch.setattr(rob_mots, "_without_excuse", seen_excuse)
    for seed in range(20):
        write_benchmarks(tmp_path / str(seed), seed)
        ours(tmp_path / str(seed))
    assert len(seen) == 5
    assert min(seen.values()) >= 20, seen
