"""Arrays out of a pickle file, without executing it: whatever is not an array or a plain container is refused."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from typing import IO, Any

import numpy as np


class RefusedPickle(ValueError):
    """The pickle asks for something that is not an array or a plain container; nothing of it was executed."""


def read_arrays(file: IO[bytes]) -> Any:
    """Unpickle containers, text, numbers and numpy arrays of numbers; nothing else.

    Not even numpy's own reconstruction runs: arrays are made from their bytes by the classes below, so a pickle cannot
    reach what numpy would do with a forged state.

    Raises: RefusedPickle naming what the pickle asks for; ValueError if it is damaged.
    """
    try:
        return _arrays(_Unpickler(file, encoding="latin1").load())
    except RefusedPickle:
        raise
    except Exception as error:
        # A damaged or forged pickle makes the unpickler raise nearly any type; all mean the same to the user.
        raise ValueError(f"damaged pickle: {type(error).__name__}: {error}") from error


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy._core", "numpy.core").replace("__builtin__", "builtins")
        if (module, name) not in _ALLOWED:
            raise RefusedPickle(f"it asks for {module}.{name}, which weights do not need; nothing was executed")
        return _ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise RefusedPickle("it refers to objects outside the file; nothing was executed")


class _DType:
    """Stands for numpy.dtype, of plain numbers only."""

    def __init__(self, code: str, *_: object) -> None:
        self.value = np.dtype(code)
        if self.value.kind not in "biuf" or self.value.names is not None or self.value.subdtype is not None:
            raise RefusedPickle(f"it holds an array of {self.value}, which is not a plain number; nothing was executed")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.value = self.value.newbyteorder(state[1])


class _Array:
    """Stands for numpy.ndarray until its bytes are known."""

    value: np.ndarray

    def __setstate__(self, state: tuple[int, tuple[int, ...], _DType, bool, bytes | str]) -> None:
        _, shape, dtype, fortran, raw = state
        self.value = _array(raw, dtype, shape, "F" if fortran else "C")


def _array(raw: bytes | str, dtype: _DType, shape: tuple[int, ...], order: str = "C") -> np.ndarray:
    content = raw.encode("latin1") if isinstance(raw, str) else bytes(raw)
    found = np.frombuffer(content, dtype.value).reshape(shape, order="F" if order == "F" else "C")
    return found.astype(dtype.value.newbyteorder("="))  # native, writable


def _reconstruct(kind: type, *_: object) -> _Array:
    if kind is not _Array:
        raise RefusedPickle("it builds an array of a foreign class; nothing was executed")
    return _Array()


def _scalar(dtype: _DType, raw: bytes | str) -> Any:
    return _array(raw, dtype, ())[()]


def _from_buffer(raw: bytes, dtype: _DType, shape: tuple[int, ...], order: str) -> np.ndarray:
    return _array(raw, dtype, shape, order)


def _encode(text: str, encoding: str) -> bytes:
    """Stands for _codecs.encode, by which old protocols write bytes."""
    if encoding != "latin1":
        raise RefusedPickle(f"it encodes text as {encoding}; nothing was executed")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """Stands for bytes, which the oldest protocols call for an empty array."""
    return b""


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "bytes"): _no_bytes,
    ("_codecs", "encode"): _encode,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
}


def _arrays(value: Any) -> Any:
    """Replace every stand-in below `value` by what it stands for."""
    if isinstance(value, _Array | _DType):
        return value.value
    if isinstance(value, dict):
        return {key: _arrays(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_arrays(item) for item in value)
    return value
