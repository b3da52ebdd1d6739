"""
Arrays that are read row by row from where they lie: data larger than memory.

All have ``shape``, ``dtype``, ``ndim`` and ``len``, and give NumPy arrays for a row, a slice, a
mask or a list of rows in any order and with repeats; ``numpy.asarray`` reads the whole.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

Array: TypeAlias = NDArray[Any]
Rows: TypeAlias = NDArray[np.int64]

CHUNK_BYTES = 32 * 2**20


class Source(Protocol):
    """What :class:`Demonstrations` holds: a NumPy array, in memory or mapped, or a lazy one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """As of a NumPy array."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """As of a NumPy array."""

    @property
    def ndim(self) -> int:
        """As of a NumPy array."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: Any, /) -> Any: ...

    def __array__(self) -> Array: ...


class LazyArray(ABC):
    """
    An array whose rows are read when asked for.

    :param shape: ``(M, ...)``
    :param dtype: of the entries
    """

    def __init__(self, shape: tuple[int, ...], dtype: DTypeLike):
        self.shape = tuple(shape)
        self.dtype: np.dtype[Any] = np.dtype(dtype)

    @abstractmethod
    def read(self, rows: Rows) -> Array:
        """
        :param rows: ``(n,)`` within bounds, not negative, in any order and with repeats
        :return: ``(n, *shape[1:])``, an array of its own
        """

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, tuple):
            first, *rest = key
            outer = () if isinstance(first, int | np.integer) else (slice(None),)
            return self[first][(*outer, *rest)]
        if isinstance(key, int | np.integer):
            return self.read(_checked(np.array([key], np.int64), len(self)))[0]
        if isinstance(key, slice):
            return self.read(np.arange(*key.indices(len(self)), dtype=np.int64))
        rows = np.asarray(key)
        if rows.dtype == bool:
            if rows.shape != (len(self),):
                raise IndexError(f"a mask of shape {rows.shape}, expected ({len(self)},)")
            rows = np.flatnonzero(rows)
        if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
            raise IndexError(f"{key!r}: expected a row, a slice, a mask or a list of rows")
        return self.read(_checked(rows.astype(np.int64), len(self)))

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> Array:
        if copy is False:
            raise ValueError(f"{self!r} is read by copying")
        return np.asarray(self[:], dtype)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={self.shape}, dtype={self.dtype})"


class ConcatenatedArray(LazyArray):
    """
    Arrays laid end to end without copying them.

    :param parts: at least one, ``(m_i, ...)``: NumPy arrays, mapped ones, HDF5 or Zarr datasets,
        lazy arrays, mixed as may be; their shapes after the first axis agree
    :param name: of the field, for messages
    :raises ValueError: where the shapes differ, naming the part
    """

    def __init__(self, parts: Sequence[Any], name: str = "parts"):
        if not parts:
            raise ValueError(f"{name}: empty; expected at least one array")
        inner = tuple(parts[0].shape[1:])
        for index, part in enumerate(parts):
            if len(part.shape) == 0 or tuple(part.shape[1:]) != inner:
                raise ValueError(
                    f"{name}[{index}]: shape {tuple(part.shape)}, expected "
                    f"{('length', *inner)}, as the first".replace("'", "")
                )
        self.parts = list(parts)
        self.ends = np.cumsum([part.shape[0] for part in parts], dtype=np.int64)
        dtype = np.result_type(*{np.dtype(part.dtype) for part in parts})
        super().__init__((int(self.ends[-1]), *inner), dtype)

    def read(self, rows: Rows) -> Array:
        """See :meth:`LazyArray.read`; each part is read once, by rising rows."""
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        order = np.argsort(rows, kind="stable")
        ordered = rows[order]
        owners = np.searchsorted(self.ends, ordered, side="right")
        cuts = np.flatnonzero(np.diff(owners, prepend=-1, append=-1))
        for low, high in pairwise(cuts):
            part = int(owners[low])
            start = self.ends[part - 1] if part else 0
            found[order[low:high]] = take(self.parts[part], ordered[low:high] - start)
        return found


class LoadedArray(LazyArray):
    """
    An array that is loaded whole each time rows of it are read: an episode in a file of its own.

    :param load: gives the array; a :class:`Cache` behind it keeps what was loaded last
    :param shape: which it will have
    :param dtype: to which it is cast
    """

    def __init__(self, load: Callable[[], ArrayLike], shape: tuple[int, ...], dtype: DTypeLike):
        super().__init__(shape, dtype)
        self.load = load

    def read(self, rows: Rows) -> Array:
        """See :meth:`LazyArray.read`."""
        loaded = np.asarray(self.load())
        if loaded.shape != self.shape:
            raise ValueError(f"loaded an array of shape {loaded.shape}, expected {self.shape}")
        return loaded[rows].astype(self.dtype, copy=False)


class ConvertedArray(LazyArray):
    """
    A function applied to the rows that are read: another dtype, chosen columns, decoded images.

    :param source: ``(M, ...)``
    :param function: of ``(n, ...)`` rows to ``(n, ...)`` others, row by row
    """

    def __init__(self, source: Source, function: Callable[[Array], Array]):
        self.source, self.function = source, function
        sample = np.asarray(function(np.asarray(source[:1])))
        super().__init__((len(source), *sample.shape[1:]), sample.dtype)

    def read(self, rows: Rows) -> Array:
        """See :meth:`LazyArray.read`."""
        return np.asarray(self.function(take(self.source, rows)))


class RowsOf(LazyArray):
    """
    Some rows of an array.

    :param source: ``(M, ...)``
    :param rows: ``(n,)`` which, in the wanted order
    """

    source: Source
    rows: Rows

    def __init__(self, source: Source, rows: ArrayLike):
        self.source = source
        self.rows = _checked(np.asarray(rows, np.int64), len(source))
        if isinstance(source, RowsOf):
            self.source, self.rows = source.source, source.rows[self.rows]
        super().__init__((len(self.rows), *source.shape[1:]), source.dtype)

    def read(self, rows: Rows) -> Array:
        """See :meth:`LazyArray.read`."""
        return take(self.source, self.rows[rows])


class Cache:
    """
    A loader that keeps what it loaded last, up to a number of bytes.

    :param load: of a key, as a path, to an array or a mapping of arrays
    :param max_bytes: what is kept at most; the last is kept always
    """

    def __init__(self, load: Callable[[Any], Any], max_bytes: int = 256 * 2**20):
        self.load, self.max_bytes = load, max_bytes
        self._kept: OrderedDict[Hashable, Any] = OrderedDict()
        self._bytes = 0

    def __call__(self, key: Hashable) -> Any:
        """
        :param key: what to load
        :return: what ``load`` gave for it
        """
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        loaded = self.load(key)
        self._kept[key] = loaded
        self._bytes += _n_bytes(loaded)
        while self._bytes > self.max_bytes and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= _n_bytes(dropped)
        return loaded

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": OrderedDict(), "_bytes": 0}


def as_source(array: Any) -> Any:
    """
    :param array: what the user brought
    :return: lazy and mapped arrays as they are, HDF5 and Zarr datasets wrapped, all else as NumPy
        array
    """
    if isinstance(array, LazyArray | np.memmap):
        return array
    return ConcatenatedArray([array]) if _is_stored(array) else np.asarray(array)


def is_lazy(array: Any) -> bool:
    """
    :param array: an array
    :return: whether it lies elsewhere than in memory
    """
    return isinstance(array, LazyArray | np.memmap) or _is_stored(array)


def chunks(array: Source, max_bytes: int = CHUNK_BYTES) -> Iterator[tuple[int, Array]]:
    """
    Read an array from start to end with bounded memory.

    :param array: ``(M, ...)``
    :param max_bytes: size of a chunk, at least one row
    :return: first row and rows of each chunk
    """
    row_bytes = array.dtype.itemsize * math.prod(array.shape[1:])
    step = max(1, max_bytes // max(1, row_bytes))
    for start in range(0, len(array), step):
        yield start, np.asarray(array[start : start + step])


def choose_rows(array: Any, rows: Rows) -> Any:
    """
    :param array: ``(M, ...)``
    :param rows: which
    :return: those rows, copied from an array in memory, else without reading them
    """
    return RowsOf(array, rows) if is_lazy(array) else array[rows]


def _is_stored(array: Any) -> bool:
    """HDF5 and Zarr datasets, which both say how they are cut in chunks."""
    return hasattr(array, "chunks") and isinstance(getattr(array, "dtype", None), np.dtype)


def take(source: Any, rows: Rows) -> Array:
    """
    Rows of any array; HDF5 reads rising rows without repeats alone, and runs of them fast.

    :param source: ``(M, ...)``
    :param rows: ``(n,)`` within bounds, not negative
    :return: ``(n, ...)``
    """
    if len(rows) and np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows))):
        run = np.asarray(source[int(rows[0]) : int(rows[0]) + len(rows)])
        return run.copy() if isinstance(source, np.ndarray) else run
    if isinstance(source, np.ndarray | LazyArray):
        return np.asarray(source[rows])
    distinct, back = np.unique(rows, return_inverse=True)
    return np.asarray(source[distinct])[back]


def _checked(rows: Rows, length: int) -> Rows:
    wrong = (rows < -length) | (rows >= length)
    if wrong.any():
        raise IndexError(f"row {rows[np.argmax(wrong)]} of an array of {length} rows")
    return np.where(rows < 0, rows + length, rows)


def _n_bytes(loaded: Any) -> int:
    parts = loaded.values() if isinstance(loaded, Mapping) else [loaded]
    return sum(np.asarray(part).nbytes for part in parts)
