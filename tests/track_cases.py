"""Official numbers of tracks, and our reports in the words of mots_tools and TrackEval."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from evalset import FOLDER
from rectangles import VOID, car, history

from post_platform.metrics import hota, identity, mots
from post_platform.metrics.similarity import Objects, objects_of

EVALSET = json.loads((FOLDER / "expected_tracks.json").read_text())
EDGE_CASES = json.loads((FOLDER.parent / "edge_cases_mots.json").read_text())
IGNORE = (VOID, 0, 10, 10, 40, 40)
HALF = (1, 1, 10, 10, 40, 20)
EDGE_FRAMES = {  # (truth, prediction) by frame; the official tools were run on the same rectangles
    "perfect 3 frames": history([1, 1, 1]),
    "empty predictions": history([0, 0, 0]),
    "empty gt": [([], [car(1)])] * 3,
    "both empty": [([], [])] * 3,
    "iou exactly 0.5": [([car(1)], [HALF])],
    "only ignore region, pred inside": [([IGNORE], [(1, 1, 12, 12, 20, 20)])],
    "pred exactly 50% in ignore": [([IGNORE], [(1, 1, 10, 30, 40, 40)])],
    "id switch A->B then back A": history([1, 1, 2, 2, 1, 1]),
    "gap then new id (switch over gap)": history([1, 1, 0, 0, 2, 2]),
    "gap same id (fragment)": history([1, 1, 0, 0, 1, 1]),
    "wrong class prediction": [([car(1)], [car(1, native=2)])],
    "tracked 80% exactly (4 of 5)": history([1, 1, 1, 1, 0]),
    "tracked 20% exactly (1 of 5)": history([1, 0, 0, 0, 0]),
}
CURVES = ("HOTA", "DetA", "AssA", "DetRe", "DetPr", "AssRe", "AssPr", "LocA", "OWTA")


def of_sequence(table: pa.Table, name: str) -> pa.Table:
    """The rows of one sequence."""
    return table.filter(pc.equal(table["sequence"], name))


def as_mots_tools(table, native: int, frames: int) -> dict:
    """Our report in the words of mots_tools; what its shares of nothing are, 0, included."""
    found, happened = mots.report(table, native), mots.events(table, native)
    tracks, predicted = max(found["tracks"], 1), happened.filter(pc.not_equal(happened["pred_track"], 0))
    matches = happened.filter(pc.is_in(happened["kind"], pa.array(["match", "switch"])))
    of_frames = matches.group_by(["sequence", "frame"]).aggregate([("iou", "mean")])["iou_mean"].to_numpy()
    return {name: found[name] for name in ("MOTSA", "sMOTSA", "MOTSP", "MOTSAL", "MODSA")} | {
        "tp": found["TP"], "fp": found["FP"], "fn": found["FN"], "n_itr": found["ignored"], "n_gt": found["objects"],
        "n_tr": found["TP"] + found["FP"] + found["ignored"], "id_switches": found["IDS"], "fragments": found["Frag"],
        "n_gt_trajectories": found["tracks"],
        "n_tr_trajectories": predicted.group_by(["sequence", "pred_track"]).aggregate([]).num_rows,
        "total_num_frames": frames, "FAR": found["FP"] / frames, "total_cost": matches["iou"].to_numpy().sum(),
        "MODSP": (of_frames.sum() + frames - len(of_frames)) / frames,  # 1 in a frame without a match
        **{name: found[name] / tracks for name in ("MT", "PT", "ML")},
        **{name: found[name] or 0.0 for name in ("recall", "precision", "F1")},
    }  # fmt: skip


def assert_equals_mots_tools(found: dict, expected: dict):
    """Every expected number to 1e-9; its infinities are None here."""
    for name, value in expected.items():
        want = None if value in ("inf", "-inf") else pytest.approx(value, abs=1e-9)
        assert found[name] == want, name


def as_trackeval(table, native: int, frames: int) -> dict:
    """Our three reports in the words of TrackEval's HOTA, CLEAR and Identity, None where we say None."""
    objects: Objects = objects_of(table, native)
    clear, alphas = mots.report(objects, native, "trackeval"), hota.report(objects, native)["per_alpha"]
    first = {name: alphas[name][0] for name in ("HOTA", "LocA")}
    undefined = None in first.values()
    shares = {f"{name}R": clear[name] / clear["tracks"] if clear["tracks"] else None for name in ("MT", "PT", "ML")}
    return {
        "HOTA": {name: alphas[name] for name in CURVES}
        | {f"HOTA_{name}": alphas[name] for name in ("TP", "FN", "FP")}
        | {"HOTA(0)": first["HOTA"], "LocA(0)": first["LocA"]}
        | {"HOTALocA(0)": None if undefined else first["HOTA"] * first["LocA"]},
        "CLEAR": {name: clear[name] for name in ("MT", "PT", "ML", "Frag")}
        | {f"CLR_{name}": clear[name] for name in ("TP", "FN", "FP", "F1")}
        | {"MOTA": clear["MOTSA"], "sMOTA": clear["sMOTSA"], "MOTP": clear["MOTSP"], "MODA": clear["MODSA"]}
        | {"MOTAL": clear["MOTSAL"], "CLR_Re": clear["recall"], "CLR_Pr": clear["precision"], "IDSW": clear["IDS"]}
        | {"MOTP_sum": (clear["MOTSP"] or 0) * clear["TP"], "CLR_Frames": frames, "FP_per_frame": clear["FP"] / frames}
        | shares,
        "Identity": identity.report(objects, native),
    }


def assert_equals_trackeval(found: dict, expected: dict, combined: bool, leave_out: tuple[str, ...] = ()):
    """Every number of TrackEval to 1e-9; where ours is None, TrackEval says what `placeholder` says."""
    for family, values in expected.items():
        for name, value in values.items():
            if name in leave_out:
                continue
            ours = found[family][name]
            nothing = ours is None or (isinstance(ours, list) and ours[0] is None)
            want = placeholder(name, found["CLEAR"], combined) if nothing else np.asarray(ours, float)
            assert np.abs(np.subtract(value, want)).max() <= 1e-9, f"{family} {name}: {value}, ours {ours}"


def placeholder(name: str, clear: dict, combined: bool) -> float:
    """What TrackEval says where nothing can be said: of a sequence, or of several that are combined."""
    if name in ("LocA", "LocA(0)"):
        return 1.0
    if name == "MLR" and not combined:
        return 1.0  # of no true tracks
    if name in ("MOTA", "sMOTA", "MODA", "MOTAL") and combined:
        return -float(clear["CLR_FP"])  # as if there were one true object
    return 0.0
