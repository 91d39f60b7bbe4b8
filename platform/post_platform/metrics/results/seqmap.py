"""Seqmaps: which sequences an official tool scores, and which frames they have."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from post_platform.datasets.files import read_lines
from post_platform.errors import DataError
from post_platform.metrics.results.pair import FramePair, Results

LINE = re.compile(r"(\S+)(?:\s+empty\s+([0-9]{1,9})\s+([0-9]{1,9}))?")


def read_seqmap(path: Path) -> dict[str, range | None]:
    """Sequence -> its frames, None where the line does not tell.

    A line is `0002 empty 000000 000232`, both ends included, as mots_tools and TrackEval read it for KITTI-MOTS; or a
    bare name under a first line `name`, as for MOTS20.

    Raises: DataError naming file and line, or a file without any sequence.
    """
    found: dict[str, range | None] = {}
    for number, text in read_lines(path, f"--seqmap {path}"):
        match = LINE.fullmatch(text.strip())
        if match is None:
            raise DataError(f"{path}, line {number}: {text[:60]!r} is neither 'name' nor 'name empty first last'")
        name, first, last = match.groups()
        if number == 1 and name == "name" and first is None:
            continue
        if name in found:
            raise DataError(f"{path}, line {number}: sequence {name!r} is listed twice")
        found[name] = None if first is None else range(int(first), int(last) + 1)
        if first is not None and not found[name]:
            raise DataError(f"{path}, line {number}: frames {first} to {last} are none")
    if not found:
        raise DataError(f"{path}: lists no sequence")
    return found


def within(results: Results, frames: Mapping[str, range | None], path: Path) -> Results:
    """The same results, held to the frames that a seqmap allows, which are then the frames that count.

    Raises: DataError while reading, naming the sequence and frame that is outside.
    """

    def read(names: Sequence[str]) -> Iterator[FramePair]:
        for pair in results.read(names):
            allowed = frames.get(pair.sequence)
            if allowed is not None and pair.frame not in allowed:
                where = pair.where or f"sequence {pair.sequence}"
                raise DataError(f"{where}: frame {pair.frame} is outside {allowed[0]}..{allowed[-1]}, as {path} has it")
            yield pair

    counts = {name: len(found) if (found := frames.get(name)) else count for name, count in results.counts.items()}
    return replace(results, counts=counts, read=read)
