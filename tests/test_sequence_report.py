"""The long table of scores: what `score` says of a dataset and of each of its sequences, every number once."""

from collections import Counter

import evalset
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from post_platform.labels import load_contract
from post_platform.metrics.contingency import merge
from post_platform.metrics.score import flat, score
from post_platform.training.sequence_report import scalars, sequence_report, sequences_of, write_report

CONTRACT = load_contract("kitti_step")


def stills():
    table = evalset.table("coco_panoptic")
    return table.filter(pc.less(table["frame"], 1))


@pytest.fixture(scope="module")
def report():
    return sequence_report(merge([evalset.table(), stills()]))


def values(report, dataset, sequence):
    rows = [row for row in report.to_pylist() if (row["dataset"], row["sequence"]) == (dataset, sequence)]
    return {"/".join(filter(None, (row["metric"], row["class"]))): row["value"] for row in rows}


@pytest.mark.parametrize("sequence", ["", *evalset.SEQUENCES])
def test_values_are_those_of_score_on_the_rows_of_the_sequence(report, sequence):
    table = evalset.table()
    rows = table.filter(pc.equal(table["sequence"], sequence)) if sequence else table
    families = score(rows, CONTRACT)
    expected, found = flat(families), values(report, "kitti_step", sequence)
    missing = expected.keys() - found.keys()
    assert {name: found[name] for name in expected.keys() - missing} == {
        name: expected[name] for name in expected.keys() - missing
    }
    assert not missing if not sequence else all("/" in name and not expected[name] for name in missing)
    assert found["TP/car"] == families["mots"]["car"]["TP"]
    assert found["PQ_TP/car"] == families["pq"]["per_class"]["car"]["tp"]
    assert found["VPQ_2_things"] == families["vpq"]["Things"]["2"]


def numbers(node):
    """How many numbers a report holds outside of lists and the scores that STQ itself gives by sequence."""
    if isinstance(node, dict):
        return sum(numbers(entry) for name, entry in node.items() if name not in ("per_sequence", "per_alpha"))
    return int(node is None or isinstance(node, int | float))


def test_every_number_is_there_and_none_twice():
    families = score(evalset.table(), CONTRACT)
    found = list(scalars(families))
    assert max(Counter(entry[:2] for entry in found).values()) == 1
    means = {("", name) for name in ("IDS", "IDF1", "IDP", "IDR", "HOTA", "DetA", "AssA", "LocA")}
    means |= {("", name) for name in ("sMOTSA", "MOTSA", "MOTSP")}
    assert len(found) == numbers(families) + len(means)


def test_stills_are_no_sequences(report):
    found = report.filter(pc.equal(report["dataset"], "coco_panoptic"))
    assert set(found["sequence"].to_pylist()) == {""}
    assert values(report, "coco_panoptic", "")["PQ"] is not None


def test_sequences_come_whole_whatever_the_order_of_the_rows():
    table = evalset.table().sort_by([("frame", "descending"), ("pixels", "ascending")])
    found = {name: rows.num_rows for dataset, name, rows in sequences_of(table)}
    assert found == Counter(evalset.table()["sequence"].to_pylist())
    assert list(sequences_of(table.slice(0, 0))) == []


def test_csv_and_parquet_hold_the_same(report, tmp_path):
    text, binary = write_report(report, tmp_path / "scores", "step_00000007")
    assert (text.name, binary.name) == ("step_00000007.csv", "step_00000007.parquet")
    assert pq.read_table(binary).equals(report)
    types = {"sequence": pyarrow.string()}
    options = pyarrow.csv.ConvertOptions(column_types=types, strings_can_be_null=False)
    assert pyarrow.csv.read_csv(text, convert_options=options).equals(report.replace_schema_metadata(None))
