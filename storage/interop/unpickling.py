"""Pickles of plain containers, numbers, text and numpy arrays: read without running code, written for old numpy too.

What arrays are made of is rebuilt by functions of this file, for numpy's own believe what a pickle tells them: a dtype
that claims to hold objects where it holds numbers makes numpy follow numbers as addresses.
"""

from __future__ import annotations

import io
import pickle
import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from storage.errors import StoreError

KINDS = "biufcOSU"  # of dtypes: numbers, objects, text; no records, no dates
TORCH_MAGIC = 0x1950A86A20F9469CFC6C  # opens what torch.save wrote before it wrote zip files
LONGEST_LINE = 300  # characters of an error that are passed on
TORCH = "it is a file of torch.save"


def loads(data: bytes, what: str) -> Any:
    """What a pickle of plain things holds; text of Python 2 comes out as `str`, byte by byte (Latin-1).

    Args:
        what: names the file or entry, for messages.

    Raises:
        StoreError: the pickle is damaged, or asks for anything but containers, numbers, text and numpy arrays.
    """
    try:
        if data.startswith(b"PK\x03\x04"):
            raise pickle.UnpicklingError(TORCH)
        content = PlainUnpickler(io.BytesIO(data), encoding="latin1").load()
        if isinstance(content, int) and content == TORCH_MAGIC:
            raise pickle.UnpicklingError(TORCH)
    except Exception as error:  # damaged pickles raise nearly any type, from KeyError to struct.error
        raise StoreError(
            f"{what} is not a pickle of plain arrays, numbers and text ({first_line(error)}); "
            "nothing else is unpickled."
        ) from error
    return content


def dumps(content: Any) -> bytes:
    """A pickle (protocol 4) that old projects can load: numpy before 1.26 knows no array as numpy 2 pickles it."""
    target = io.BytesIO()
    _OldNames(target, protocol=4).dump(content)
    return target.getvalue()


def first_line(error: Exception) -> str:
    """The first line of what an error says, fit to be shown: errors quote what stands in the file."""
    line = next(iter(str(error).splitlines()), "")[:LONGEST_LINE] or type(error).__name__
    return "".join(letter if letter.isprintable() else "?" for letter in line)


def _dtype(code: str, *_: object) -> np.dtype[Any]:
    found: np.dtype[Any] = np.dtype(code, False, True)  # a copy: the pickle goes on to set its byte order
    if found.kind not in KINDS or found.subdtype is not None:
        raise pickle.UnpicklingError(f"it asks for the dtype {code!r}")
    return found


def _array(*_: object) -> np.ndarray:
    return np.empty(0, np.int8)  # its shape, dtype and numbers follow


def _scalar(dtype: np.dtype[Any], data: bytes | str) -> Any:
    return _from_buffer(data.encode("latin1") if isinstance(data, str) else data, dtype, (1,), "C")[0]


def _from_buffer(data: bytes | bytearray, dtype: np.dtype[Any], shape: tuple[int, ...], order: Any) -> np.ndarray:
    if not isinstance(data, bytes | bytearray):  # an array's own memory may be gone before this view of it
        raise pickle.UnpicklingError(f"it asks for an array over {type(data).__name__}")
    return np.frombuffer(data, dtype).reshape(shape, order=order)


def _bytes(text: str = "", encoding: str = "latin1") -> bytes:
    """How pickles of Python 2's protocols spell bytes."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"it asks for the codec {encoding!r}")
    return text.encode("latin1")


KNOWN: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): "numpy.ndarray",  # named, never called
    ("numpy", "dtype"): _dtype,
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _bytes,
}
for _package in ("numpy.core", "numpy._core"):
    KNOWN[f"{_package}.multiarray", "_reconstruct"] = _array
    KNOWN[f"{_package}.multiarray", "scalar"] = _scalar
    KNOWN[f"{_package}.numeric", "_frombuffer"] = _from_buffer
for _package in ("builtins", "__builtin__"):
    KNOWN.update({(_package, "bytes"): _bytes, (_package, "set"): set, (_package, "frozenset"): frozenset})


class PlainUnpickler(pickle._Unpickler):
    """Rebuilds numpy arrays and plain containers; any other class in the file is refused before it is imported.

    Python's own unpickler written in Python, for that one lets us look at what an object is about to be told of itself.

    Raises:
        pickle.UnpicklingError: the pickle asks for something else; damaged ones raise nearly any type.
    """

    def find_class(self, module: str, name: str) -> Any:
        try:
            return KNOWN[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it asks for what lies outside it, as the tensors of torch.save do")

    def _build(self) -> None:
        """Where a pickle tells an object its state."""
        state = self.stack.pop()  # type: ignore[attr-defined]
        target = self.stack[-1]  # type: ignore[attr-defined]
        if isinstance(target, np.dtype):
            _check_dtype(target, state)
        elif isinstance(target, OrderedDict):
            return  # attributes, such as torch's versions of layers; its items came before
        elif not isinstance(target, np.ndarray):
            raise pickle.UnpicklingError(f"it asks to change the state of {type(target).__name__}")
        target.__setstate__(state)

    def _bytearray(self) -> None:
        """Python's own makes room for as many bytes as the pickle says, before it looks whether they are there."""
        size = int.from_bytes(self.read(8), "little")  # type: ignore[attr-defined]
        data = self.read(min(size, sys.maxsize))  # type: ignore[attr-defined]
        if len(data) < size:
            raise EOFError("it ends before its bytes do")
        self.append(bytearray(data))  # type: ignore[attr-defined]

    dispatch: ClassVar[dict[int, Callable[..., None]]] = {
        **pickle._Unpickler.dispatch,
        pickle.BUILD[0]: _build,
        pickle.BYTEARRAY8[0]: _bytearray,
    }


def _check_dtype(dtype: np.dtype[Any], state: tuple[Any, ...]) -> None:
    own = dtype.__reduce__()[2]
    order = state[1]
    if not (order in ("<", ">", "|", "=") and len(state) == len(own) and (*own[:1], order, *own[2:]) == state):
        raise pickle.UnpicklingError(f"it asks for a dtype {dtype.str!r} that is none")


class _OldNames(pickle._Pickler):
    """Names numpy's functions as numpy did before version 2, which still knows those names."""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        module = getattr(obj, "__module__", None) or ""
        if not module.startswith("numpy._core."):
            super().save_global(obj, name)  # type: ignore[misc]
            return
        old = f"numpy.core.{module.removeprefix('numpy._core.')}"
        self.write(pickle.GLOBAL + f"{old}\n{obj.__name__}\n".encode())  # type: ignore[attr-defined]
        self.memoize(obj)  # type: ignore[attr-defined]
