"""Writing beside the training: a copy of what is to be written, and one thread that writes it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class Background:
    """Does one task at a time beside the caller; what went wrong is raised where the caller waits for it."""

    def __init__(self) -> None:
        """Nothing to do yet."""
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, task: Callable[[], None]) -> None:
        """Begin a task once the one before is done. Raises: the error of the one before."""
        self.wait()

        def run() -> None:
            try:
                task()
            except BaseException as error:
                self._error = error

        # Not a daemon: an interpreter that ends in order waits for it.
        self._thread = threading.Thread(target=run, name="checkpoint")
        self._thread.start()

    def check(self) -> None:
        """Raises: the error of a task that has failed meanwhile; one that goes on is not waited for."""
        if self._thread and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Wait until nothing is being done. Raises: the error of the task, once."""
        if self._thread:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error:
            raise error


def snapshot(value: Any, held: Any = None) -> Any:
    """A copy of a tree of tensors in CPU memory, which later training steps do not change.

    Args:
        value: a tensor, or dictionaries and lists of tensors and of values that never change.
        held: an earlier snapshot of the same, whose memory is used again: new pages cost more than copying.
    """
    if isinstance(value, Tensor):
        if isinstance(held, Tensor) and (held.shape, held.dtype) == (value.shape, value.dtype):
            return held.copy_(value.detach())
        return value.detach().to("cpu", copy=True).contiguous()
    if isinstance(value, Mapping):
        old = held if isinstance(held, dict) else {}
        return {name: snapshot(item, old.get(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        known = held if isinstance(held, list | tuple) and len(held) == len(value) else [None] * len(value)
        return type(value)(snapshot(item, old) for item, old in zip(value, known, strict=True))
    return value


def save_tensors(tree: Any, path: Path) -> None:
    """Write a tree of tensors for `torch.load`, beside the training.

    Given a path instead of a file, torch would hold Python's lock while it writes, and every step would wait for it.
    """
    with path.open("wb") as file:
        torch.save(tree, file)
