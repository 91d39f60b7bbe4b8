"""Count the frames of result files, in this process or in several; the table is the same, row for row."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import pyarrow as pa

from post_platform.errors import PostError
from post_platform.metrics.contingency import merge
from post_platform.metrics.results.pair import Results

PARTS_PER_WORKER = 8  # enough that a long sequence at the end keeps nobody waiting for long
HELD_FRAMES = 512
_shared: Results | None = None  # what forked workers read; readers hold closures, which no pickle carries


def count_results(results: Results, workers: int = 1, progress: Callable[[int], None] = lambda done: None) -> pa.Table:
    """The contingency tables of all frames, merged in the order of the sequences whoever counted them.

    Args:
        results: what is read.
        workers: processes that count; a sequence is counted by one of them.
        progress: told the number of frames done.

    Raises: DataError of the readers; PostError when a worker is killed.
    """
    if workers <= 1 or len(results.counts) < 2:
        return _merged(results, list(results.counts), progress)
    global _shared
    _shared = results
    tables, done = [], 0
    parts = _parts(results, workers * PARTS_PER_WORKER)
    try:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) as pool:
            waiting = [pool.submit(_count_part, part) for part in parts]
            try:
                for part, future in zip(parts, waiting, strict=True):
                    tables.append(future.result())
                    done += sum(results.counts[name] for name in part)
                    progress(done)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    except BrokenProcessPool as error:
        raise PostError("a worker process was killed, perhaps for want of memory", "use fewer: --workers 1") from error
    finally:
        _shared = None
    return merge(tables)


def _count_part(names: Sequence[str]) -> pa.Table:
    assert _shared is not None
    return _merged(_shared, names)


def _merged(results: Results, names: Sequence[str], progress: Callable[[int], None] = lambda done: None) -> pa.Table:
    """The table of some sequences. A table of one frame is mostly overhead, so few are held at a time."""
    merged: list[pa.Table] = []
    frames: list[pa.Table] = []
    for done, pair in enumerate(results.read(names), start=1):
        frames.append(pair.table(results.contract.dataset))
        if len(frames) == HELD_FRAMES:
            merged.append(merge(frames))
            frames = []
        progress(done)
    return merge([*merged, *frames])


def _parts(results: Results, number: int) -> list[list[str]]:
    """The sequences in order, cut into about `number` parts of about as many frames."""
    parts: list[list[str]] = [[]]
    size, most = 0, max(1, results.count // number)
    for name, frames in results.counts.items():
        if size + frames > most and parts[-1]:
            parts.append([])
            size = 0
        parts[-1].append(name)
        size += frames
    return parts
