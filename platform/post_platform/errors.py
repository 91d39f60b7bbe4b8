"""The errors a user can cause; each is one clear line, and pipelines print it without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PostError(Exception):
    """A user's mistake, or damage found in the user's files; never a bug of ours.

    The message says what is wrong, where (dataset / shard / key / field), got versus expected. `hint` is the
    next command to try; pipelines print it on a second line.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def __reduce__(self) -> tuple[type[PostError], tuple[str, str]]:
        """Keep `hint` when Ray carries the error from a worker to the driver."""
        return type(self), (str(self), self.hint)


class ConfigError(PostError):
    """A configuration that names an unknown key, an impossible value, or a knob that must not exist."""


class DataError(PostError):
    """A dataset, shard, label or image that is missing, malformed or damaged."""


class StorageError(DataError):
    """An object store that refuses, or that still fails after every retry; the object itself may be whole."""


def nearest(name: str, valid: Iterable[str], count: int = 3) -> str:
    """Say which valid names are closest to `name`: '; did you mean a, b?', or list all when none is close.

    Nothing where there is no valid name.
    """
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=count, cutoff=0.5)
    if close:
        return f"; did you mean {', '.join(close)}?"
    return f"; valid: {', '.join(names)}" if names else ""
