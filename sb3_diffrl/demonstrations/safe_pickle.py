"""
Pickles of arrays, read without running what they say.

Dataset folders of robotics hold pickles (RLBench's demonstrations, CALVIN's annotations). A pickle
is a program: the stock reader imports and calls whatever it names. Here every name is looked up in
a closed table whose entries are our own builders of arrays, data types and byte strings, so nothing
of NumPy's reconstruction, let alone anything else, is called with a file's arguments. All other
names are refused before anything happens.
"""

from __future__ import annotations

import io
import os
import pickle
import pickletools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

DEFAULT_MAX_BYTES = 1 << 30
_MEMO = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
_OUTSIDE = frozenset(
    {"PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"}
)
_PLAIN_DTYPE = frozenset("?bBhHiIlLqQefdgFDSUO")


class UnsafePickleError(ValueError):
    """A pickle refers to something beyond arrays, plain containers and the classes expected."""


class Record:
    """What stands in for a pickled object of a class that is read for its attributes alone."""

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
            raise pickle.UnpicklingError("the state of an object is not a dictionary of attributes")
        self.__dict__.update(state)


def load_pickle(
    path: str | os.PathLike[str],
    classes: Mapping[str, type[Record]] | None = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
) -> Any:
    """
    Read a pickle that holds arrays, numbers, strings and plain containers.

    :param path: the file, of any pickle protocol from 2 to 5
    :param classes: what stands in for which class, by its dotted name
    :param max_bytes: larger files are refused
    :return: what it holds; arrays are copies of their own
    :raises UnsafePickleError: if it refers to anything else, named in the message
    :raises ValueError: if it is truncated, no pickle, or too large
    """
    path = Path(path)
    _check_size(path, max_bytes)
    with path.open("rb") as file:
        return _load(path, file, classes or {})


def load_npy(path: str | os.PathLike[str], max_bytes: int = DEFAULT_MAX_BYTES) -> NDArray[Any]:
    """
    Read an ``.npy`` file that may hold an array of objects, such as one dictionary.

    :param path: the file
    :param max_bytes: larger files are refused
    :return: the array; one object comes as an array of shape ``()``
    :raises UnsafePickleError: if the objects are more than arrays and plain containers
    :raises ValueError: if it is truncated, no ``.npy``, or too large
    """
    path = Path(path)
    _check_size(path, max_bytes)
    with path.open("rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            read_header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, _, dtype = read_header(file)
        except (ValueError, KeyError) as error:
            raise ValueError(f"{path}: not an .npy file that can be read ({error})") from error
        if dtype.hasobject:
            array = _load(path, file, {})
            if not isinstance(array, np.ndarray) or array.shape != shape:
                raise ValueError(f"{path}: expected a pickled array of shape {shape}")
            return array
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: truncated or corrupt ({error})") from error


def _check_size(path: Path, max_bytes: int) -> None:
    size = path.stat().st_size
    if size > max_bytes:
        raise ValueError(
            f"{path}: {size} bytes, more than the {max_bytes} that are read at once; "
            "pass a larger max_bytes if the file is what it should be"
        )


def _load(path: Path, file: IO[bytes], classes: Mapping[str, type[Record]]) -> Any:
    content = file.read()
    try:
        _check_opcodes(path, content)
        return _Unpickler(path, io.BytesIO(content), classes).load()
    except UnsafePickleError:
        raise
    # Malformed opcodes surface as any of these, by what the reader was at.
    except (
        pickle.UnpicklingError,
        ArithmeticError,
        AttributeError,
        EOFError,
        ImportError,
        LookupError,
        MemoryError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise ValueError(f"{path}: truncated or corrupt pickle ({error})") from error


def _check_opcodes(path: Path, content: bytes) -> None:
    """
    Refuse references to outside objects, and places in the unpickler's memo beyond those that so
    many steps can fill: it would allocate all places before them.
    """
    for step, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        if opcode.name in _OUTSIDE:
            raise UnsafePickleError(f"{path}: the pickle refers to an outside object")
        if opcode.name in _MEMO and int(argument or 0) > step:
            raise pickle.UnpicklingError(f"place {argument} of the memo in step {step}")


class _Unpickler(pickle.Unpickler):
    def __init__(self, path: Path, file: IO[bytes], classes: Mapping[str, type[Record]]) -> None:
        super().__init__(file)
        self._path = path
        self._known: dict[str, Any] = {**_BUILDERS, **classes}

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full not in self._known:
            raise UnsafePickleError(
                f"{self._path}: the pickle refers to {full}, which is not read; expected arrays, "
                "numbers, strings and plain containers"
                + "".join(f", {known}" for known in self._known if known not in _BUILDERS)
            )
        return self._known[full]


class _Function:
    """A function that a pickle may call and cannot alter."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("a state for a function")


class _Dtype:
    """A plain data type under construction; structured and sub-array types are refused."""

    def __init__(self, name: str, align: bool = False, copy: bool = False) -> None:
        self.dtype = np.dtype(str(name))
        if self.dtype.char not in _PLAIN_DTYPE or self.dtype.fields is not None:
            raise pickle.UnpicklingError(f"data type {name!r}: expected numbers or strings")

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 5 or any(x is not None for x in state[2:5]):
            raise pickle.UnpicklingError("data type: expected a plain one, found fields")
        order: Any = state[1]
        self.dtype = self.dtype.newbyteorder(order)


class _Array(np.ndarray[Any, np.dtype[Any]]):
    """An array under construction, filled by the state that the pickle holds for it."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return np.asarray(self).__reduce_ex__(protocol)

    def __setstate__(self, state: Any) -> None:
        _version, shape, dtype, fortran, data = state
        order: Literal["F", "C"] = "F" if fortran else "C"
        array = _objects(data) if _plain(dtype).hasobject else np.frombuffer(data, _plain(dtype))
        array = array.reshape(_shape(shape), order=order)
        content: Any = list(array.flat) if array.dtype.hasobject else array.tobytes()
        checked: Any = (1, array.shape, array.dtype, False, content)
        super().__setstate__(checked)


def _plain(dtype: object) -> np.dtype[Any]:
    if not isinstance(dtype, _Dtype):
        raise pickle.UnpicklingError(f"expected a data type, found {type(dtype).__name__}")
    return dtype.dtype


def _shape(shape: object) -> tuple[int, ...]:
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise pickle.UnpicklingError(f"shape {shape!r}: expected sizes")
    return shape


def _objects(values: object) -> NDArray[Any]:
    if not isinstance(values, list):
        raise pickle.UnpicklingError("an array of objects does not come with a list of them")
    array = np.empty(len(values), dtype=object)
    for i, value in enumerate(values):
        array[i] = value
    return array


def _reconstruct(subtype: object, shape: object, typecode: object) -> _Array:
    if subtype is not _NDARRAY or shape != (0,):
        raise pickle.UnpicklingError("an array is not built as NumPy builds it")
    return _Array((0,), np.int8)


def _frombuffer(data: Any, dtype: object, shape: object, order: str) -> NDArray[Any]:
    if _plain(dtype).hasobject:
        raise pickle.UnpicklingError("an array of objects in a buffer")
    flat = np.frombuffer(data, _plain(dtype))
    return flat.reshape(_shape(shape), order="F" if order == "F" else "C").copy()


def _scalar(dtype: object, data: bytes = b"") -> Any:
    if _plain(dtype).hasobject:
        raise pickle.UnpicklingError("a NumPy scalar that is an object")
    return np.frombuffer(data, _plain(dtype), count=1)[0]


def _encode(text: str, encoding: str) -> bytes:
    """How protocol 2 writes byte strings."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"byte string in the encoding {encoding!r}")
    return text.encode("latin1")


def _empty() -> bytes:
    """How protocol 2 writes an empty byte string."""
    return b""


_NDARRAY = object()  # only ever an argument, so it need not be callable

# NumPy 2 renamed `numpy.core` to `numpy._core`; files of both are about.
_OF_CORE: dict[str, Callable[..., Any]] = {
    "multiarray._reconstruct": _reconstruct,
    "multiarray.scalar": _scalar,
    "numeric._frombuffer": _frombuffer,
}
_BUILDERS: dict[str, Any] = {
    "numpy.ndarray": _NDARRAY,
    "numpy.dtype": _Dtype,
    "_codecs.encode": _Function(_encode),
    "__builtin__.bytes": _Function(_empty),
    **{
        f"numpy.{core}.{name}": _Function(function)
        for core in ("core", "_core")
        for name, function in _OF_CORE.items()
    },
}
