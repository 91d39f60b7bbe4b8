"""The ledger: one chained hash over what was trained on, cut back to the step from which a run continues."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from post_platform.data.augment import Augmentation
from post_platform.data.load import ClipLoader
from post_platform.data.plan import Plan
from post_platform.shards.index import encode_index, read_split
from post_platform.training.ledger import EMPTY, NAME, Ledger, compare, read, seen

ROOT = Path(__file__).resolve().parent.parent

STEPS = [[(0, "a/s/000001"), (1, "b/s/000000")], [(2, "a/s/000002"), (3, "a/t/000000")], [(4, "b/s/000001")]]


def filled(path, steps=STEPS):
    ledger = Ledger(path, 0, EMPTY)
    for number, samples in enumerate(steps, 1):
        ledger.append(number, samples)
    return ledger


def test_a_line_holds_positions_counts_and_the_chained_hash(tmp_path):
    ledger = filled(tmp_path / "l")
    first, second, third = read(tmp_path / "l")
    assert first == {
        "step": 1,
        "positions": [0, 1],
        "counts": {"a": 1, "b": 1},
        "sha256": hashlib.sha256((EMPTY + "0 a/s/000001\n1 b/s/000000\n").encode()).hexdigest(),
    }
    assert second["counts"] == {"a": 2}
    assert second["sha256"] == hashlib.sha256((first["sha256"] + "2 a/s/000002\n3 a/t/000000\n").encode()).hexdigest()
    assert ledger.digest == third["sha256"]


def test_the_order_in_which_ranks_report_does_not_matter(tmp_path):
    filled(tmp_path / "a")
    filled(tmp_path / "b", [seen[::-1] for seen in STEPS])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    "other",
    [
        [[(0, "a/s/000009"), (1, "b/s/000000")], *STEPS[1:]],  # another sample
        [[(0, "b/s/000000"), (1, "a/s/000001")], *STEPS[1:]],  # the same samples at other positions
        [STEPS[0] + STEPS[1], STEPS[2]],  # other steps
    ],
)
def test_any_difference_stays_in_the_hash_for_ever(tmp_path, other):
    a, b = filled(tmp_path / "a"), filled(tmp_path / "b", other)
    assert a.digest != b.digest or len(read(tmp_path / "a")) != len(read(tmp_path / "b"))


def test_resuming_cuts_back_to_the_committed_step(tmp_path):
    filled(tmp_path / "whole")
    filled(tmp_path / "cut")
    committed = read(tmp_path / "cut")[0]
    ledger = Ledger(tmp_path / "cut", committed["step"], committed["sha256"])
    assert [line["step"] for line in read(tmp_path / "cut")] == [1]
    ledger.append(2, STEPS[1])
    ledger.append(3, STEPS[2])
    assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes()


def test_starting_anew_forgets_what_a_kill_left(tmp_path):
    filled(tmp_path / "l")
    assert filled(tmp_path / "l").digest == filled(tmp_path / "other").digest
    assert (tmp_path / "l").read_bytes() == (tmp_path / "other").read_bytes()


def test_a_last_line_cut_by_a_kill_is_dropped(tmp_path):
    filled(tmp_path / "whole")
    text = (tmp_path / "whole").read_text()
    (tmp_path / "cut").write_text(text[: text.rindex('"sha256"')])
    assert [line["step"] for line in read(tmp_path / "cut")] == [1, 2]
    second = read(tmp_path / "cut")[1]
    Ledger(tmp_path / "cut", 2, second["sha256"]).append(3, STEPS[2])
    assert (tmp_path / "cut").read_text() == text


def test_a_ledger_that_is_not_there_is_empty(tmp_path):
    assert read(tmp_path / "none") == []


def script(*arguments):
    command = [sys.executable, "pipelines/ledger.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def run_folder(tmp_path, name, steps=STEPS):
    (tmp_path / name).mkdir()
    filled(tmp_path / name / NAME, steps)
    return tmp_path / name


def test_script_says_that_two_runs_saw_the_same(tmp_path):
    one, two = run_folder(tmp_path, "one"), run_folder(tmp_path, "two", STEPS[:2])
    same = script(one, one / NAME)
    assert (same.returncode, same.stdout, same.stderr) == (0, "the same data over 3 steps\n", "")
    shorter = script("two", "one", "--dir", tmp_path, "--json", tmp_path / "c.json")
    assert (shorter.returncode, shorter.stdout) == (0, "the same data over 2 steps; one run has 1 more\n")
    assert json.loads((tmp_path / "c.json").read_text()) == {
        "steps": [2, 3],
        "parting": None,
        "reason": "",
        "same": True,
    }
    assert two.is_dir()


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        ([(2, "a/s/000002"), (3, "a/t/000009")], "the same positions and counts, other samples"),
        ([(2, "a/s/000002"), (3, "b/t/000000")], "samples per dataset a 2 against a 1, b 1"),
        ([(2, "a/s/000002"), (4, "a/t/000000")], "positions 2 to 3 (2) against 2 to 4 (2)"),
        ([(2, "a/s/000002")], "positions 2 to 3 (2) against 2 to 2 (1)"),
    ],
)
def test_script_names_the_step_at_which_two_runs_part(tmp_path, second, reason):
    one, two = run_folder(tmp_path, "one"), run_folder(tmp_path, "two", [STEPS[0], second, STEPS[2]])
    found = script(one, two)
    assert found.returncode == 1
    assert found.stdout.startswith(f"the runs part at step 2: {reason}")


def test_script_answers_mistakes_in_one_line(tmp_path):
    one = run_folder(tmp_path, "one")
    missing = script(one, "onee", "--dir", tmp_path)
    assert missing.returncode == 1
    assert missing.stderr.startswith("error: no ledger of run 'onee': neither onee/ledger.jsonl nor ")
    assert "did you mean one" in missing.stderr
    lines = (one / NAME).read_text().splitlines()
    (one / NAME).write_text("\n".join([lines[0], lines[2], ""]))
    damaged = script(one, one)
    assert damaged.returncode == 1
    assert damaged.stderr.startswith(f"error: {one / NAME}, line 2: is not the record of step 2: step 3")
    (one / NAME).write_text("{}\n")
    assert "line 1: is not the record of step 1" in script(one, one).stderr


def swapped(root, one, other):
    """Two samples of one length change places in their shard; the index knows their checksums, but not the change."""
    folder = root / "kitti_step/train"
    table = pq.read_table(folder / "index.parquet")
    rows = table.to_pylist()
    tar = bytearray((folder / "000000.tar").read_bytes())
    a, b = (rows[number] for number in (one, other))
    assert a["length"] == b["length"]
    here, there = (slice(row["offset"], row["offset"] + row["length"]) for row in (a, b))
    tar[here], tar[there] = tar[there], tar[here]
    (folder / "000000.tar").write_bytes(tar)
    a["crc32"], b["crc32"] = b["crc32"], a["crc32"]
    content = encode_index(pa.Table.from_pylist(rows, schema=table.schema))
    (folder / "index.parquet").write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["index_sha256"] = hashlib.sha256(content).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_sample_that_is_swapped_in_the_stream_parts_the_ledgers(toy_shards, tmp_path):
    """The plan names the same keys in both; the ledger holds what the shards really gave."""
    index = read_split(toy_shards, "kitti_step", "train").index.to_pylist()
    one, other = next((i, j) for i in range(len(index)) for j in range(i) if index[i]["length"] == index[j]["length"])
    damaged = Path(shutil.copytree(toy_shards, tmp_path / "shards"))
    swapped(damaged, one, other)
    files, planned = [], []
    for number, root in enumerate((toy_shards, damaged)):
        plan = Plan([read_split(root, "kitti_step", "train")], global_batch=4, seed=1)
        loader = ClipLoader(plan, Augmentation((32, 64)))
        files.append(tmp_path / f"ledger_{number}")
        ledger = Ledger(files[-1], 0, EMPTY)
        for step in range(len(index) // 4):
            rows = plan.rows(np.arange(4 * step, 4 * step + 4))
            planned.append(rows["key"].to_pylist())
            ledger.append(step + 1, seen(loader.load(rows)))
    half = len(planned) // 2
    assert planned[:half] == planned[half:]
    names = {f"{index[i]['sequence']}/{index[i]['frame']:06d}" for i in (one, other)}
    first = next(step for step, keys in enumerate(planned[:half], 1) if names & set(keys))
    assert compare(*files).parting == first
    assert compare(files[0], files[0]).parting is None
