"""What docs/datasets.md says of each dataset is what its reader takes: the files, the splits, the command."""

import re
from pathlib import Path

import pytest
from test_perfect_predictions import CASES

from post_platform.datasets import readable, reader

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/datasets.md").read_text(encoding="utf-8")
THIRTEEN = PAGE.split("## The thirteen\n")[1].split("\n## ")[0]
SECTIONS = {text.splitlines()[0]: text for text in re.split(r"^### ", THIRTEEN, flags=re.MULTILINE)[1:]}


def listed(dataset: str) -> list[str]:
    """The paths that a section lists, each with the archive that it comes from behind it."""
    block = re.search(r"```text\n(.*?)```", SECTIONS[dataset], re.DOTALL)
    assert block, dataset
    rows = [re.split(r" {2,}", line) for line in block[1].splitlines()]
    assert all(len(row) == 2 and all(row) for row in rows), rows
    return [path for path, _ in rows]


def like(path: str) -> re.Pattern:
    """Any number in place of a number, any split in place of `<split>`."""
    parts = [re.sub(r"[0-9]", "[0-9]", re.escape(part)) for part in path.split("<split>")]
    return re.compile("[a-z_-]+".join(parts))


def test_every_dataset_that_can_be_converted_has_a_section():
    assert sorted(SECTIONS) == sorted(readable())


@pytest.mark.parametrize("dataset", SECTIONS)
def test_the_files_are_those_that_the_reader_is_tested_on(dataset, tmp_path):
    source = CASES[dataset][0](tmp_path)
    files = [path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()]
    assert [path for path in listed(dataset) if not any(map(like(path).fullmatch, files))] == []


@pytest.mark.parametrize("dataset", SECTIONS)
def test_splits_and_command(dataset):
    named = re.search(r"^Splits ([a-z_, ]+)[.;]", SECTIONS[dataset], re.MULTILINE)
    assert named
    assert tuple(named[1].split(", ")) == reader(dataset).SPLITS
    command = rf"^python pipelines/convert\.py {dataset} --source ~/data/\w+ --out shards$"
    assert re.search(command, SECTIONS[dataset], re.MULTILINE)


def test_a_wrong_layout_is_found_out():
    assert like("<split>/img/0001.png").fullmatch("train/img/0815.png")
    assert not like("<split>/img/0001.png").fullmatch("train/image/0815.png")
    assert not like("<split>/img/0001.png").fullmatch("train/img/815.png")
