"""pipelines/score.py as a user calls it: what it prints, its JSON, saved tables, and its one-line errors."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from evalset import EXPECTED, FOLDER
from official_bytes import compressed, write

SCRIPT = Path(__file__).parents[1] / "pipelines" / "score.py"
MOTS = ("kitti_mots", "--truth", FOLDER / "mots_gt_txt", "--predictions", FOLDER / "mots_pred_txt")
STEP = ("kitti_step", "--truth", FOLDER / "step_gt", "--predictions", FOLDER / "step_pred")


def run_script(*arguments):
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, check=False)


def report(folder, *arguments):
    done = run_script(*arguments, "--json", folder / "report.json")
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "report.json").read_text()), done.stdout


def refused(*arguments):
    """The error line and the hint of a command that ends with exit code 1."""
    done = run_script(*arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert "Traceback" not in done.stderr
    error, _, hint = done.stderr[done.stderr.index("error: ") :].strip().partition("\n  ")
    return error, hint


def test_results_of_tracks(tmp_path):
    found, printed = report(tmp_path, *MOTS)
    assert (found["dataset"], found["protocol"], found["frames"], found["sequences"]) == (
        "kitti_mots",
        "mots_tools",
        40,
        2,
    )
    assert set(found["metrics"]) == {"mots", "hota", "identity"}
    assert found["seconds"] > 0
    for name in ("car", "pedestrian"):
        mots, expected = found["metrics"]["mots"][name], EXPECTED["mots_tools"][name]["all"]
        for metric in ("sMOTSA", "MOTSA", "MOTSP"):
            assert mots[metric] == pytest.approx(expected[metric], abs=1e-9)
        counts = [mots[key] for key in ("TP", "FP", "FN", "IDS", "Frag")]
        assert counts == [expected[key] for key in ("tp", "fp", "fn", "id_switches", "fragments")]
        assert {type(count) for count in counts} == {int}
        trackeval = EXPECTED["trackeval"][name]["all"]
        values = {**found["metrics"]["hota"][name], **found["metrics"]["identity"][name]}
        for metric in ("HOTA", "DetA", "AssA", "LocA", "IDF1"):
            assert values[metric] == pytest.approx(trackeval[metric], abs=1e-9)
    mean = (EXPECTED["mots_tools"]["car"]["all"]["sMOTSA"] + EXPECTED["mots_tools"]["pedestrian"]["all"]["sMOTSA"]) / 2
    assert found["headline"] == {"name": "sMOTSA", "value": pytest.approx(mean, abs=1e-9)}
    assert "sMOTSA 0.3004" in printed
    row = next(line.split() for line in printed[printed.index("mots, by class") :].splitlines() if "pedestrian" in line)
    assert row[1:] == ["0.1501", "0.3720", "0.7041", "123", "60", "41", "2", "5", "5", "0", "14"]


def test_results_of_every_pixel_by_two_processes_and_again_from_tables(tmp_path):
    found, _ = report(tmp_path, *STEP, "--workers", 2, "--tables", tmp_path / "t.parquet")
    metrics, panopticapi = found["metrics"], EXPECTED["panopticapi"]
    assert set(metrics) == {"pq", "miou", "mots", "hota", "identity", "stq", "vpq"}
    for group in ("All", "Things", "Stuff"):
        expected = {name: pytest.approx(panopticapi[group][name], abs=1e-9) for name in ("pq", "sq", "rq", "n")}
        assert metrics["pq"][group] == expected
    assert metrics["pq"]["per_class"]["rider"] == {"pq": None, "sq": None, "rq": None, "tp": 0, "fp": 0, "fn": 0}
    assert metrics["pq"]["per_class"]["car"]["tp"] == 306
    assert metrics["stq"]["STQ"] == pytest.approx(EXPECTED["deeplab2"]["STQ"], abs=1e-6)
    windows = [EXPECTED["vps"][window]["All"]["pq"] for window in "1234"]
    assert [metrics["vpq"][window] for window in "1234"] == pytest.approx(windows, abs=1e-9)
    assert metrics["vpq"]["mean"] == pytest.approx(sum(windows) / 4, abs=1e-9)

    one, _ = report(tmp_path, *STEP)
    again, _ = report(tmp_path, "tables", tmp_path / "t.parquet")
    assert {**one, "seconds": 0} == {**again, "seconds": 0} == {**found, "seconds": 0}
    other, _ = report(tmp_path, "tables", tmp_path / "t.parquet", "--protocol", "deeplab2")
    assert other["protocol"] == "deeplab2"
    assert other["metrics"]["vpq"]["2"] < found["metrics"]["vpq"]["2"]  # crowd is missed there


def test_a_seqmap_says_which_sequences_and_frames_there_are(tmp_path):
    (tmp_path / "val.seqmap").write_text("0006 empty 000000 000024\n")
    found, _ = report(tmp_path, *MOTS, "--seqmap", tmp_path / "val.seqmap")
    assert (found["frames"], found["sequences"]) == (25, 1)  # the last five have no object on either side
    expected = EXPECTED["mots_tools"]["car"]["0006"]["sMOTSA"]
    assert found["metrics"]["mots"]["car"]["sMOTSA"] == pytest.approx(expected, abs=1e-9)
    (tmp_path / "short.seqmap").write_text("0006 empty 000000 000018\n")
    error, _ = refused(*MOTS, "--seqmap", tmp_path / "short.seqmap")
    assert "mots_pred_txt/0006.txt, line 234, frame 19, id 1002: frame 19 is outside 0..18, as" in error
    (tmp_path / "bad.seqmap").write_text("0006 empty 000000\n")
    assert (
        "bad.seqmap, line 1: '0006 empty 000000' is neither" in refused(*MOTS, "--seqmap", tmp_path / "bad.seqmap")[0]
    )


def test_two_empty_files_leave_everything_undefined(tmp_path):
    for side in ("gt", "pred"):
        (tmp_path / side).mkdir()
        (tmp_path / side / "0000.txt").write_text("")
    found, printed = report(tmp_path, "kitti_mots", "--truth", tmp_path / "gt", "--predictions", tmp_path / "pred")
    assert (found["frames"], found["headline"]["value"], found["metrics"]["hota"]["car"]["HOTA"]) == (0, None, None)
    assert found["metrics"]["mots"]["car"]["FN"] == 0
    assert printed.endswith("sMOTSA -\n")


def test_rob_mots_by_benchmark_and_again_from_tables(tmp_path):
    """A car found in both frames; of the two classes of the benchmark one is nowhere, which TrackEval counts as 0."""
    mask = np.zeros((20, 30), int)
    mask[4:12, 4:12] = 1
    lines = "".join(f"{frame} 7 3 1.0 20 30 {compressed(mask)}\n" for frame in (0, 1))
    write(tmp_path / "gt/kitti_mots/data/0002.txt", lines)
    write(tmp_path / "gt/kitti_mots/seqmap.txt", "0002 2 20 30\n")
    write(tmp_path / "gt/kitti_mots/clsmap.txt", "1 3\n")
    write(tmp_path / "gt/tao/seqmap.txt", "none 2 20 30\n")
    write(tmp_path / "pred/data/kitti_mots/0002.txt", lines)
    tables = tmp_path / "t.parquet"
    found, printed = report(
        tmp_path, "rob_mots", "--truth", tmp_path / "gt", "--predictions", tmp_path / "pred", "--tables", tables
    )
    assert set(found["metrics"]) == {"mots", "hota", "identity", "rob_mots"}
    kinds = found["metrics"]["rob_mots"]["kitti_mots"]
    assert [kinds[kind]["HOTA"] for kind in ("cls_av", "det_av")] == [0.5, 1.0]
    assert found["headline"] == {"name": "HOTA", "value": pytest.approx(0.5**0.5, abs=1e-12)}
    row = next(line.split() for line in printed.splitlines() if "kitti_mots, final" in line)
    assert row[2:] == ["0.7071", "0.7071", "0.7071", "1.0000"]
    again, _ = report(tmp_path, "tables", tables)
    assert {**again, "seconds": 0} == {**found, "seconds": 0}


def test_mistakes_end_with_one_line(tmp_path):
    error, hint = refused(*MOTS[:3], "--predictions", FOLDER / "step_gt" / "0002")
    assert "no result for sequence '0002'" in error
    assert "--sequences" in hint
    error, hint = refused(*MOTS, "--protocol", "trackval")
    assert error == "error: --protocol trackval: kitti_mots has no such protocol; did you mean trackeval?"
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    assert "t.parquet: no readable contingency table" in refused("tables", tmp_path / "t.parquet")[0]
    assert "--json /proc/nothing: cannot write there" in refused(*MOTS, "--json", "/proc/nothing/f")[0]


@pytest.mark.parametrize(
    "arguments",
    [("nothing", "--truth", "a", "--predictions", "b"), ("kitti_mots",), ("tables",), ("tables", "f", "--truth", "a")],
)
def test_wrong_usage(arguments):
    assert run_script(*arguments).returncode == 2
