"""Pickles of other projects: what plain ones hold, and that nothing else in them is as much as looked up."""

from __future__ import annotations

import collections
import os
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from storage import StoreError
from storage.interop.unpickling import dumps, loads

PLAIN: dict[str, Any] = {
    "numbers": [1, -(2**70), 0.5, True, None, 1j],
    "text": ("a", "\u00fc\u4e2d", b"", b"\xff\x00"),
    "sets": {1, 2},
    "frozen": frozenset({3}),
    "ordered": collections.OrderedDict(b=1, a=2),
    "nested": {9: {"x": [(), {}]}},
}
ARRAYS: dict[str, np.ndarray] = {
    "float32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "float16": np.array([0.1, -0.0, np.inf], np.float16),
    "int64": np.array([2**60, -1]),
    "bool": np.array([True, False]),
    "text": np.array(["ab", "\u4e2d"]),
    "bytes": np.array([b"ab", b"c"]),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "empty": np.zeros((0, 4), np.float32),
    "scalar": np.array(3.5),
}


def without_complex(content: dict[str, Any]) -> dict[str, Any]:
    return {**content, "numbers": content["numbers"][:-1]}


@pytest.mark.parametrize("protocol", range(6))
def test_plain_things_come_back(protocol: int) -> None:
    wanted = without_complex(PLAIN)
    found = loads(pickle.dumps(wanted, protocol), "it")
    assert found == wanted and list(found["ordered"]) == ["b", "a"]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_come_back_bit_for_bit(protocol: int, name: str) -> None:
    wanted = ARRAYS[name]
    found = loads(pickle.dumps({"x": wanted, "y": wanted}, protocol), "it")
    assert found["x"] is found["y"] and type(found["x"]) is np.ndarray
    assert (found["x"].dtype, found["x"].shape) == (wanted.dtype, wanted.shape)
    assert found["x"].tobytes() == wanted.tobytes()


def test_numbers_of_numpy_dtypes_and_arrays_of_dicts_come_back() -> None:
    wanted = {"a": np.float32(0.1), "b": np.int64(5), "c": np.bool_(True), "d": np.str_("x"), "e": np.dtype(np.float16)}
    found = loads(pickle.dumps(wanted), "it")
    assert found == wanted and all(type(found[name]) is type(wanted[name]) for name in wanted)
    assert loads(pickle.dumps(np.array({"num_boxes": 3}, dtype=object)), "it").item() == {"num_boxes": 3}


def test_the_other_byte_order_keeps_its_numbers() -> None:
    wanted = np.array([1.5, -2], ">f4")
    assert np.array_equal(loads(pickle.dumps(wanted), "it"), wanted)
    assert loads(pickle.dumps(wanted.dtype), "it") == wanted.dtype


@pytest.mark.parametrize(
    "data",
    [
        b"(dp1\nI9\nI0\nsL581929L\nI1\ns.",  # cPickle.dump(..., protocol=0) of Python 2
        b"\x80\x02}q\x01(K\tK\x00\x8a\x03\x29\xe1\x08K\x01u.",  # its protocol 2, where a long comes as such
    ],
    ids=["protocol 0", "protocol 2"],
)
def test_a_map_that_python_2_wrote(data: bytes) -> None:
    assert loads(data, "it") == {9: 0, 581929: 1}


def test_text_and_arrays_of_python_2_are_taken_byte_by_byte() -> None:
    assert loads(b"S'a\\xe9'\np1\n.", "it") == "a\u00e9"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I2\ntcnumpy\n"
    state = b"dtype\n(S'f4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\nS'\\x00\\x00\\x80?\\x00\\x00\\x00\\xc0'\ntb."
    assert loads(array + state, "it").tolist() == [1, -2]


def test_arrays_that_numpy_1_wrote() -> None:
    data = pickle.dumps({"a": np.ones(3, np.float32), "b": np.float64(2)}, 2)
    assert b"numpy._core" in data
    found = loads(data.replace(b"numpy._core", b"numpy.core"), "it")
    assert found["a"].tolist() == [1, 1, 1] and found["b"] == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_is_written_names_nothing_that_old_numpy_does_not_know() -> None:
    wanted = {**ARRAYS, "keys": [b"a"], "number": np.float32(2), "dict": np.array({"x": np.ones(2)}, dtype=object)}
    data = dumps(wanted)
    assert b"_core" not in data
    for found in (loads(data, "it"), pickle.loads(data)):
        assert all(np.array_equal(found[name], wanted[name]) for name in ARRAYS)
        assert found["keys"] == [b"a"] and found["number"] == 2 and found["dict"].item()["x"].tolist() == [1, 1]


# Refused


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_would_run_a_program_is_refused_and_nothing_runs(tmp_path: Path, protocol: int) -> None:
    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {tmp_path}/ran",)

    with pytest.raises(
        StoreError, match=r"^f\.pkl is not a pickle of plain .* \(it asks for .*system\); nothing else is"
    ):
        loads(pickle.dumps({"a": Attack()}, protocol), "f.pkl")
    assert not list(tmp_path.iterdir())


GLOBALS = [
    "builtins eval", "builtins getattr", "builtins bytearray", "posix system", "numpy load", "numpy fromfile",
    "numpy.core.multiarray fromfile", "numpy._core.multiarray frombuffer", "torch load", "collections defaultdict",
    "_codecs decode", "importlib import_module", "numpy ndarray.tofile",
]  # fmt: skip


@pytest.mark.parametrize("name", GLOBALS)
def test_only_what_arrays_are_made_of_is_looked_up(name: str) -> None:
    module, attribute = name.split()
    dotted = b"\x80\x04\x8c" + bytes([len(module)]) + module.encode()
    dotted += b"\x8c" + bytes([len(attribute)]) + attribute.encode() + b"\x93."
    for data in (f"c{module}\n{attribute}\n.".encode(), dotted):
        with pytest.raises(StoreError, match=f"it asks for {module}.{attribute}"):
            loads(data, "it")


def test_tensors_are_refused_with_a_reason(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="it asks for torch"):
        loads(pickle.dumps(torch.ones(2)), "it")
    for zipped in (True, False):
        torch.save({"a": torch.ones(2)}, tmp_path / "t", _use_new_zipfile_serialization=zipped)
        with pytest.raises(StoreError, match="it is a file of torch.save"):
            loads((tmp_path / "t").read_bytes(), "it")
    with pytest.raises(StoreError, match="it asks for what lies outside it, as the tensors of torch.save do"):
        loads(b"\x80\x02U\x01aQ.", "it")


FLAGS = b"K\x00t"  # the end of a dtype's state: its flags, and that the state is a tuple


def test_a_dtype_that_says_it_holds_objects_is_refused() -> None:
    data = pickle.dumps(np.ones(2, np.float32), 2)
    assert data.count(FLAGS) == 1
    lying = data.replace(FLAGS, b"K\x3ft")
    with pytest.raises(StoreError, match="asks for a dtype '<f4' that is none"):
        loads(lying, "it")


@pytest.mark.parametrize("kind", ["f4,i4", "f4,O", "M8[s]", [("a", "O")], "(2,)f4"])
def test_dtypes_of_other_than_numbers_text_and_objects_are_refused(kind: Any) -> None:
    with pytest.raises(StoreError, match="nothing else is unpickled"):
        loads(pickle.dumps(np.dtype(kind)), "it")
    if isinstance(kind, str):
        with pytest.raises(StoreError, match="asks for the dtype"):
            loads(f"cnumpy\ndtype\n(V{kind}\nI00\nI01\ntR.".encode(), "it")


def test_an_array_over_the_memory_of_another_is_refused() -> None:
    array = pickle.dumps(np.ones(2), 2)[2:-1]
    data = (
        b"\x80\x02cnumpy._core.numeric\n_frombuffer\n(" + array + b"cnumpy\ndtype\n(X\x02\x00\x00\x00f8tRK\x02U\x01CtR."
    )
    with pytest.raises(StoreError, match="an array over ndarray"):
        loads(data, "it")


@pytest.mark.parametrize("target", ["_codecs\nencode", "collections\nOrderedDict", "builtins\nset", "numpy\nndarray"])
def test_what_pickles_name_cannot_be_changed(target: str) -> None:
    with pytest.raises(StoreError, match="it asks to change the state of"):
        loads(f"c{target}\n(dVx\nI1\nsb.".encode(), "it")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_damaged_pickle_raises_nothing_but_a_store_error_of_one_line(protocol: int) -> None:
    content = {"a": np.ones(3, np.float32), "b": [1, "x"], "c": np.array({"d": 1}, dtype=object), "e": np.float32(1)}
    data, rng, refused = pickle.dumps(content, protocol), random.Random(protocol), 0
    for _ in range(400):
        damaged = bytearray(data)
        damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        try:
            loads(bytes(damaged[: rng.choice([len(data), rng.randrange(len(data))])]), "it")
        except StoreError as error:
            refused += 1
            assert "\n" not in str(error) and str(error).startswith("it is not a pickle of plain")
    assert refused > 100
