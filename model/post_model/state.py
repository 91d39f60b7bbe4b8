"""State dictionaries: they fit a network whole, or what does not is said by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn


def fill(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load weights into a module, all or none.

    Raises: ValueError as `check_fit`.
    """
    check_fit(module.state_dict(), state, source)
    module.load_state_dict(state)


def check_fit(expected: Mapping[str, Tensor], got: Mapping[str, Tensor], source: str) -> None:
    """Compare two state dictionaries by name and shape.

    Raises: ValueError naming up to five keys that are unknown, missing or of another shape.
    """
    problems = {
        "unknown": sorted(got.keys() - expected.keys()),
        "missing": sorted(expected.keys() - got.keys()),
        "shape differs": [
            f"{name} is {tuple(got[name].shape)}, expected {tuple(expected[name].shape)}"
            for name in sorted(expected.keys() & got.keys())
            if got[name].shape != expected[name].shape
        ],
    }
    if found := [f"{kind}: {_first(names)}" for kind, names in problems.items() if names]:
        raise ValueError(f"{source} does not fit the network; {'; '.join(found)}")


def _first(names: Sequence[str], number: int = 5) -> str:
    return ", ".join(names[:number]) + (f" and {len(names) - number} more" if len(names) > number else "")
