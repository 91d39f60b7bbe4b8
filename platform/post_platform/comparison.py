"""Runs side by side, as data: scores with differences and their noise, curves, shares, ledgers, configs, pictures."""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from post_platform.comparison_pictures import Panel, gather_pictures
from post_platform.errors import DataError, PostError
from post_platform.experiment_reader import MEAN_SCORE, ExperimentReader, History, StoredRun
from post_platform.labels import load_contract
from post_platform.metrics.score import LOWER_IS_BETTER
from post_platform.training import ledger

LETTERS = "ABCDEFGH"
LAST = 5  # validations of a run whose spread is taken where no seed was repeated
FEWEST = 3  # of them: two say next to nothing
ASIDE = {"run.name", "run.dir", "mlflow.uri", "mlflow.experiment", "log.live", "eval.every", "eval.overlays", "seed",
         "plan", *(f"train.{key}" for key in ("checkpoint_every", "keep", "log_every", "max_failures"))}  # fmt: skip
EVALUATED = ("data.val_split", "eval.max_frames")  # scores of other frames do not compare
COMMIT = "mlflow.source.git.commit"


@dataclass(frozen=True)
class Compared:
    """One of the runs: `step` is that of its last validation (None: it has none yet), `scores` are of that step."""

    letter: str
    stored: StoredRun
    step: int | None
    scores: dict[str, float]
    history: History = field(repr=False)
    repeats: tuple[Compared, ...] = ()

    @property
    def last_step(self) -> int:
        """The last step of which anything is stored."""
        return max((step for points in self.history.values() for step in points), default=0)

    def datasets(self) -> set[str]:
        """The datasets it was scored on."""
        return {name.split("/")[1] for name in self.scores} - {"mean"}

    def shares(self) -> dict[str, float]:
        """Each dataset's share of all samples until the last commit.

        What is stored at a commit is the share since the one before; every step has as many samples, so that the
        mean weighted by steps is exact.
        """
        stored = {n: points for n, points in self.history.items() if n.startswith("data/") and n.endswith("/share")}
        steps = [0, *sorted({step for points in stored.values() for step in points})]
        weights = {step: step - before for before, step in pairwise(steps)}
        return {
            name.split("/")[1]: sum(share * weights[step] for step, share in points.items()) / steps[-1]
            for name, points in stored.items()
        }


@dataclass(frozen=True)
class Pair:
    """How far a run may differ from the first one by chance. `source` says what that is known from; "": it is not.

    `spreads` are standard deviations of one run's score, of both runs; a difference is noisy by their root sum square.
    """

    source: str
    spreads: tuple[Mapping[str, float], Mapping[str, float]] = ({}, {})

    def noise(self, metric: str) -> float | None:
        """The standard deviation of the difference of a metric; None where it is not known."""
        known = [spread[metric] for spread in self.spreads if metric in spread]
        return math.hypot(*known) if len(known) == 2 else None


@dataclass(frozen=True)
class Difference:
    """Another run's score minus the first one's. `noise`: one standard deviation of that, if it is known."""

    value: float
    noise: float | None
    verdict: str  # "better", "worse": by more than twice the noise; "noise": by less; "": nothing is known


@dataclass(frozen=True)
class Row:
    """A metric of all runs (None: undefined, or not computed); a difference for each run but the first."""

    metric: str
    native_class: str  # "": of the whole dataset
    values: tuple[float | None, ...]
    differences: tuple[Difference | None, ...]


@dataclass(frozen=True)
class Comparison:
    """All there is to say; the letters of the runs are used throughout, the first run is what others differ from."""

    runs: tuple[Compared, ...]
    pairs: tuple[Pair, ...]
    mean: Row
    datasets: dict[str, list[Row]]
    headlines: dict[str, str]
    ledgers: list[dict[str, Any]]
    config: dict[str, tuple[str | None, ...]]
    same_settings: int
    pictures: list[Panel]
    timelines: list[Panel]
    notes: list[str]


def compare(reader: ExperimentReader, chosen: Sequence[StoredRun], pictures: int = 2) -> Comparison:
    """Gather everything about two to eight runs; `pictures` and timelines per dataset, 0 for none.

    What is missing (no scores yet, other datasets, deleted files) is said in `notes`, never filled in.

    Raises: PostError for fewer or more runs, or the same one twice.
    """
    if not 2 <= len(chosen) <= len(LETTERS):
        raise PostError(f"{len(chosen)} runs: from 2 to {len(LETTERS)} can be compared", "name two: compare.py RUN RUN")
    if len({run.run_id for run in chosen}) < len(chosen):
        raise PostError("one run is named twice", "name each run once")
    siblings = [run for place in dict.fromkeys(run.experiment_id for run in chosen) for run in reader.runs(place)]
    runs = tuple(_compared(reader, *entry, siblings) for entry in zip(LETTERS, chosen, strict=False))
    notes = [note for run in runs for note in _state(run)]
    names = sorted(set().union(*(run.datasets() for run in runs)))
    comparable = {name: [_comparable(name, runs[0], other) for other in runs[1:]] for name in names}
    mean_comparable = [
        other.datasets() == runs[0].datasets() and all(comparable[name][number] for name in names)
        for number, other in enumerate(runs[1:])
    ]
    notes += _mismatches(runs, names, comparable)
    pairs = tuple(_pair(runs[0], other) for other in runs[1:])
    headlines = {name: _headline(name) for name in names}
    with tempfile.TemporaryDirectory() as scratch:
        ledgers = _ledgers(reader, runs, Path(scratch), notes)
        images: list[Panel] = []
        timelines: list[Panel] = []
        if pictures:
            stored = [(run.letter, run.stored) for run in runs]
            images, timelines = gather_pictures(reader, stored, names, Path(scratch), pictures, notes)
    config, same = _config(runs)
    return Comparison(
        runs=runs,
        pairs=pairs,
        mean=_row(MEAN_SCORE, runs, pairs, mean_comparable),
        datasets={name: _rows(name, headlines[name], runs, pairs, comparable[name]) for name in names},
        headlines=headlines,
        ledgers=ledgers,
        config=config,
        same_settings=same,
        pictures=images,
        timelines=timelines,
        notes=notes,
    )


def as_json(found: Comparison) -> dict[str, Any]:
    """The comparison but its pictures and curves, as `--json` writes it."""

    def row(entry: Row) -> dict[str, Any]:
        return {
            "values": dict(zip(LETTERS, entry.values, strict=False)),
            "differences": {
                letter: d and {"value": d.value, "noise": d.noise, "verdict": d.verdict}
                for letter, d in zip(LETTERS[1:], entry.differences, strict=False)
            },
        }

    def title(entry: Row) -> str:
        return f"{entry.metric}/{entry.native_class}" if entry.native_class else entry.metric

    return {
        "runs": {
            run.letter: {
                "run_id": run.stored.run_id,
                "name": run.stored.name,
                "status": run.stored.status,
                "scored_at_step": run.step,
                "shares": run.shares(),
            }
            for run in found.runs
        },
        "noise": {letter: pair.source or None for letter, pair in zip(LETTERS[1:], found.pairs, strict=False)},
        "mean_score": row(found.mean),
        "datasets": {
            name: {"headline": found.headlines[name], "scores": {title(entry): row(entry) for entry in rows}}
            for name, rows in found.datasets.items()
        },
        "ledgers": found.ledgers,
        "config": {key: dict(zip(LETTERS, values, strict=False)) for key, values in found.config.items()},
        "notes": found.notes,
    }


def _compared(reader: ExperimentReader, letter: str, stored: StoredRun, siblings: Iterable[StoredRun]) -> Compared:
    """A run with all it logged, and its finished repeats with other seeds, itself among them."""
    run = _scored(letter, stored, reader.history(stored.run_id, stored.metrics))
    if stored.status != "FINISHED" or run.step is None:
        return run
    found = {stored.params.get("seed"): run}
    for other in siblings:  # the newest first; one run per seed
        seed = other.params.get("seed")
        if other.status == "FINISHED" and seed not in found and _trained(other) == _trained(stored):
            validations = [name for name in other.metrics if name.startswith("val/")]
            candidate = _scored("", other, reader.history(other.run_id, validations))
            if candidate.step == run.step:
                found[seed] = candidate
    return Compared(letter, stored, run.step, run.scores, run.history, tuple(found.values()))


def _scored(letter: str, stored: StoredRun, history: History) -> Compared:
    """The scores of the last validation alone: the newest value of a metric that it left undefined is older."""
    validations = {name: points for name, points in history.items() if name.startswith("val/")}
    step = max((step for points in validations.values() for step in points), default=None)
    scores = {name: points[step] for name, points in validations.items() if step in points}
    return Compared(letter, stored, step, scores, history)


def _trained(run: StoredRun) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """What two runs share if one repeats the other with another seed, whatever they are called and however watched."""
    config = {key: value for key, value in run.params.items() if key not in ASIDE}
    changes = {key.removeprefix("changed."): value for key, value in run.tags.items() if key.startswith("changed.")}
    changed = {key: value for key, value in changes.items() if key not in ASIDE}
    return config, changed, run.digests


def _pair(first: Compared, other: Compared) -> Pair:
    """The best known noise: repeated seeds of both, of one; else the last validations; else none."""
    counts = [len(run.repeats) for run in (first, other)]
    spreads = [_deviations([run.scores for run in each.repeats]) if len(each.repeats) > 1 else None
               for each in (first, other)]  # fmt: skip
    if spreads[0] and spreads[1]:
        same = {run.stored.run_id for run in first.repeats} & {run.stored.run_id for run in other.repeats}
        text = f"{counts[0]} seeds of both, which differ in nothing else" if same else (
            f"repeated seeds: {first.letter} {counts[0]}, {other.letter} {counts[1]}"
        )  # fmt: skip
        return Pair(text + _commits(first, other), (spreads[0], spreads[1]))
    for run, spread in zip((first, other), spreads, strict=True):
        if spread:
            text = f"{len(run.repeats)} seeds of {run.letter} only, taken for both: the other was not repeated"
            return Pair(text + _commits(run), (spread, spread))
    last = [_last_validations(run) for run in (first, other)]
    if all(len(scores) >= FEWEST for scores in last):
        text = f"no repeated seeds: spread of each run's last {len(last[0])} and {len(last[1])} validations, " \
               "which holds what it still learned, and not how runs differ by their seed"  # fmt: skip
        return Pair(text, (_deviations(last[0]), _deviations(last[1])))
    return Pair("")


def _commits(*runs: Compared) -> str:
    several = any(len({repeat.stored.tags.get(COMMIT) for repeat in run.repeats}) > 1 for run in runs)
    return " (some by another commit of the code)" if several else ""


def _last_validations(run: Compared) -> list[dict[str, float]]:
    validations = {name: points for name, points in run.history.items() if name.startswith("val/")}
    steps = sorted({step for points in validations.values() for step in points})[-LAST:]
    return [{name: points[step] for name, points in validations.items() if step in points} for step in steps]


def _deviations(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The sample standard deviation of every metric that is in all of them."""
    names = set(scores[0]).intersection(*scores[1:])
    return {name: statistics.stdev(found[name] for found in scores) for name in names}


def _rows(
    name: str, headline: str, runs: Sequence[Compared], pairs: Sequence[Pair], comparable: Sequence[bool]
) -> list[Row]:
    """All metrics of a dataset: its headline first, then the others, then those of its classes."""
    names = {metric for run in runs for metric in run.scores if metric.startswith(f"val/{name}/")}
    rows = [_row(metric, runs, pairs, comparable) for metric in names]
    return sorted(rows, key=lambda row: (row.native_class != "", row.metric != headline, row.metric, row.native_class))


def _row(name: str, runs: Sequence[Compared], pairs: Sequence[Pair], comparable: Sequence[bool]) -> Row:
    _, _, rest = name.split("/", 2)
    metric, _, native_class = rest.partition("/")
    values = tuple(run.scores.get(name) for run in runs)
    differences: list[Difference | None] = []
    for value, pair, allowed in zip(values[1:], pairs, comparable, strict=True):
        if values[0] is None or value is None or not allowed:
            differences.append(None)
            continue
        change, noise = value - values[0], pair.noise(name)
        verdict = "" if noise is None else "noise"
        if noise is not None and abs(change) > 2 * noise:
            verdict = "better" if (change > 0) != (metric in LOWER_IS_BETTER) else "worse"
        differences.append(Difference(change, noise, verdict))
    return Row(metric, native_class, values, tuple(differences))


def _headline(dataset: str) -> str:
    try:
        return load_contract(dataset).headline
    except PostError:  # a run of another version, or of somebody else's
        return ""


def _comparable(name: str, first: Compared, other: Compared) -> bool:
    """Whether both were scored on the same frames of a dataset, as far as is known."""
    if any(first.stored.params.get(key) != other.stored.params.get(key) for key in EVALUATED):
        return False
    split = f"{name}/{first.stored.params.get('data.val_split', 'val')}"
    digests = {run.stored.digests.get(split) for run in (first, other)} - {None}
    return len(digests) < 2


def _state(run: Compared) -> list[str]:
    """What is to be said about one run."""
    notes, status = [], run.stored.status
    if status in ("RUNNING", "SCHEDULED"):
        notes.append(f"{run.letter} is still going, at step {run.last_step}: its scores are not final")
    elif status != "FINISHED":
        notes.append(f"{run.letter} did not finish: {status}, at step {run.last_step}")
    if run.step is None:
        notes.append(f"{run.letter} has no scores" + (" yet" if status == "RUNNING" else ""))
    return notes


def _mismatches(runs: Sequence[Compared], names: Sequence[str], comparable: Mapping[str, Sequence[bool]]) -> list[str]:
    """Why scores, or their means, do not compare."""
    notes, scored = [], [run for run in runs if run.step is not None]
    if len({run.step for run in scored}) > 1:
        notes.append("scored at different steps: " + ", ".join(f"{run.letter} {run.step}" for run in scored))
    for name in names:
        missing = [run.letter for run in scored if name not in run.datasets()]
        if missing:
            text = f"{' and '.join(missing)}: not scored on {name}"
            notes.append(f"{text}; means over other datasets do not compare, so they get no difference")
    for number, run in enumerate(runs[1:]):
        other = [name for name in names if not comparable[name][number]]
        if other:
            text = f"{run.letter} and {runs[0].letter}: other data.val_split, eval.max_frames or manifest of"
            notes.append(f"{text} {', '.join(other)}; no differences of scores on what may be other frames")
    return notes


def _ledgers(
    reader: ExperimentReader, runs: Sequence[Compared], scratch: Path, notes: list[str]
) -> list[dict[str, Any]]:
    """Whether each run saw the data of the first: {"runs", "same" (None: not known), "parting", "steps", "text"}."""
    files = []
    for run in runs:
        folder = scratch / f"ledger_{run.letter}"
        folder.mkdir()
        files.append(reader.fetch(run.stored.run_id, ledger.NAME, folder))
        if files[-1] is None:
            why = "stored when a run ends" if run.stored.status == "RUNNING" else "deleted, or never stored"
            notes.append(f"{run.letter} has no ledger in MLflow ({why})")
    found = []
    for run, file in zip(runs[1:], files[1:], strict=True):
        entry: dict[str, Any] = {"runs": [runs[0].letter, run.letter], "same": None, "parting": None, "steps": None}
        if files[0] is None or file is None:
            entry["text"] = "not known: a ledger is missing"
        else:
            try:
                result = ledger.compare(files[0], file)
            except (DataError, UnicodeDecodeError) as error:
                entry["text"] = "not known: " + str(error).replace(f"{scratch}/", "")
            else:
                entry |= {"same": result.parting is None, "parting": result.parting, "steps": list(result.steps)}
                a, b = result.steps
                if result.parting is not None:
                    entry["text"] = f"they part at step {result.parting}: {result.reason}"
                else:
                    longer = f", then one has {abs(a - b)} more" if a != b else ""
                    entry["text"] = f"the same samples in the same order over {min(a, b)} steps{longer}"
        found.append(entry)
    return found


def _config(runs: Sequence[Compared]) -> tuple[dict[str, tuple[str | None, ...]], int]:
    """What differs between the runs: settings, versions of datasets, the commit; and how many settings do not."""
    settings = []
    for run in runs:
        changed = {k.removeprefix("changed."): v for k, v in run.stored.tags.items() if k.startswith("changed.")}
        settings.append({**run.stored.params, **changed})
    keys = sorted(set().union(*settings) - {"run.name", "plan"})
    table: dict[str, tuple[str | None, ...]] = {key: tuple(each.get(key) for each in settings) for key in keys}
    differing = {key: values for key, values in table.items() if len(set(values)) > 1}
    same = len(table) - len(differing)
    for name in sorted(set().union(*(run.stored.digests for run in runs))):
        values = tuple(run.stored.digests.get(name) for run in runs)
        if len(set(values)) > 1:
            differing[f"manifest of {name}"] = tuple(value and value[:12] for value in values)
    commits = tuple(
        commit and commit[:12] + (", changed" if "git.changed" in run.stored.tags else "")
        for run in runs
        for commit in [run.stored.tags.get(COMMIT)]
    )
    if len(set(commits)) > 1:
        differing["commit"] = commits
    return differing, same
