"""Where the contracts of a mixture disagree, and which classes the mixture as a whole cannot tell apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations

from post_platform.labels.contract import Contract, NativeClass
from post_platform.labels.taxonomy import taxonomy


@dataclass(frozen=True)
class Conflicts:
    """Lines for people, and for each pair of datasets (classes with other sets, thing against stuff)."""

    covered: int
    different_sets: tuple[str, ...]
    thing_stuff: tuple[str, ...]
    inseparable: tuple[str, ...]
    matrix: tuple[tuple[tuple[int, int], ...], ...]

    def as_dict(self) -> dict[str, object]:
        """The same as plain values, for JSON."""
        return asdict(self)


def find_conflicts(contracts: Sequence[Contract]) -> Conflicts:
    """Compare every pair of native classes whose primary sets meet.

    *Other sets*: the two share a unified class but not all of them. *Thing against stuff*: one dataset draws its
    objects one by one and the other does not. *Inseparable*: unified classes that stand together in every primary
    set of the mixture, so that no label ever says which of them a pixel is.
    """
    sets: list[str] = []
    kinds: list[str] = []
    counts = [[(0, 0) for _ in contracts] for _ in contracts]
    for (i, one), (j, two) in combinations(enumerate(contracts), 2):
        pair_sets, pair_kinds = _compare(one, two)
        counts[i][j] = counts[j][i] = (len(pair_sets), len(pair_kinds))
        sets += pair_sets
        kinds += pair_kinds
    owners = _owners(contracts)
    return Conflicts(
        len(owners), tuple(sets), tuple(kinds), tuple(_inseparable(owners)), tuple(tuple(row) for row in counts)
    )


def _compare(one: Contract, two: Contract) -> tuple[list[str], list[str]]:
    sets: list[str] = []
    kinds: list[str] = []
    for a in one.classes:
        for b in two.classes:
            shared = set(a.unified) & set(b.unified)
            if not shared:
                continue
            names = f"{one.dataset} {a.name!r} and {two.dataset} {b.name!r}"
            if set(a.unified) != set(b.unified):
                only = [_only(one.dataset, a, b), _only(two.dataset, b, a)]
                sets.append(f"{names}: " + "; ".join(filter(None, only)))
            if a.has_instances != b.has_instances:
                thing, stuff = (one.dataset, two.dataset) if a.has_instances else (two.dataset, one.dataset)
                kinds.append(f"{names}: thing in {thing}, stuff in {stuff}")
    return sets, kinds


def _only(dataset: str, a: NativeClass, b: NativeClass) -> str:
    names = [name for name in a.unified if name not in b.unified]
    return f"only in {dataset}: {', '.join(names)}" if names else ""


def _owners(contracts: Sequence[Contract]) -> dict[str, frozenset[tuple[str, int]]]:
    """Unified class -> the (dataset, native id) whose primary set it is in; classes of no set are left out."""
    owners: dict[str, set[tuple[str, int]]] = {}
    for contract in contracts:
        for native in contract.classes:
            for name in native.unified:
                owners.setdefault(name, set()).add((contract.dataset, native.id))
    return {name: frozenset(owners[name]) for name in taxonomy().names if name in owners}


def _inseparable(owners: dict[str, frozenset[tuple[str, int]]]) -> list[str]:
    """Groups of classes that are primary in exactly the same native classes."""
    groups: dict[frozenset[tuple[str, int]], list[str]] = {}
    for name, where in owners.items():
        groups.setdefault(where, []).append(name)
    lines = []
    for where, names in groups.items():
        if len(names) > 1:
            datasets = ", ".join(sorted({dataset for dataset, _ in where}))
            lines.append(f"{', '.join(names)} (always together, in {datasets})")
    return lines
