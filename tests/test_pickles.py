import io
import pickle
from collections import OrderedDict

import numpy as np
import pytest

from post_model.pickles import RefusedPickle, read_arrays

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
ARRAYS = {
    "rows": np.arange(6, dtype=np.float32).reshape(2, 3),
    "columns": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "big endian": np.arange(3, dtype=">f8"),
    "half": np.ones((2, 1, 2), np.float16),
    "flags": np.array([True, False]),
    "empty": np.zeros((0, 4), np.uint8),
    "number": np.array(7),
}


def dumped(content, protocol):
    return io.BytesIO(pickle.dumps(content, protocol=protocol))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_arrays_and_containers_come_back(protocol):
    content = {
        "model": OrderedDict(ARRAYS),
        "author": "b",
        "more": [1, (2.5, None)],
        "set": {3},
        "scalar": np.float32(4),
    }
    found = read_arrays(dumped(content, protocol))
    assert list(found["model"]) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert found["model"][name].dtype == array.dtype.newbyteorder("=")
        assert np.array_equal(found["model"][name], array)
        assert found["model"][name].flags.writeable
    assert {key: value for key, value in found.items() if key != "model"} == {
        "author": "b", "more": [1, (2.5, None)], "set": {3}, "scalar": 4
    }  # fmt: skip


def test_a_pickle_of_python_2_is_read():
    """Its bytes are text, and its dictionaries' keys too; written by hand, opcode by opcode."""
    raw = np.array([1.0, 2.0], "<f4").tobytes()
    python_2 = (
        b"\x80\x02}U\x01wcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x02\x85"
        b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"U" + bytes([len(raw)]) + raw + b"tbs."
    )
    assert read_arrays(io.BytesIO(python_2))["w"].tolist() == [1, 2]


class Call:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("harmful", "name"),
    [
        (Call(print, "executed"), "print"),
        (Call(eval, "print('executed')"), "eval"),
        (Call(getattr, "text", "upper"), "getattr"),
        (np.array([Call(print, "executed")]), "an array of object"),
        (np.zeros(2, [("a", "f4")]), "not a plain number"),
        (np.array(["text"]), "an array of <U4"),
        (np.ma.array([1]), "numpy.ma"),
    ],
)
def test_anything_else_is_refused_by_name_before_it_runs(harmful, name, protocol, capsys):
    with pytest.raises(RefusedPickle, match=f"{name}.*nothing was executed"):
        read_arrays(dumped({"fine": np.zeros(3), "harmful": harmful}, protocol))
    assert capsys.readouterr().out == ""


def test_forged_arrays_are_refused():
    """A shape that its bytes do not fill, and state for objects that have none."""
    good = pickle.dumps(np.zeros(4, np.float32), protocol=2)
    forged = [good.replace(b"K\x04\x85", b"K\x05\x85"), good.replace(b"f4", b"O8"), good.replace(b"f4", b"V9")]
    for bad in [*forged, good[:-9] + b"."]:
        assert bad != good
        with pytest.raises(ValueError, match=r"damaged pickle|not a plain number|it asks for"):
            read_arrays(io.BytesIO(bad))


def test_references_to_outside_are_refused():
    with pytest.raises(RefusedPickle, match="objects outside the file"):
        read_arrays(io.BytesIO(b"Pname\n."))
