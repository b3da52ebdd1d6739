"""Lazy arrays against the arrays that they stand for."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from sb3_diffrl.demonstrations import Demonstrations
from sb3_diffrl.demonstrations.arrays import (
    Cache,
    ConcatenatedArray,
    ConvertedArray,
    LazyArray,
    LoadedArray,
    RowsOf,
    as_source,
    chunks,
    is_lazy,
)

LENGTHS = (4, 1, 7, 3)
WHOLE = np.arange(sum(LENGTHS) * 2, dtype=np.float32).reshape(-1, 2)
PARTS = np.split(WHOLE, np.cumsum(LENGTHS)[:-1])
ROWS = np.array([14, 3, 3, 0, 11, 4, 12, 3])


def of_memory(folder: Path) -> tuple[LazyArray, np.ndarray]:
    return ConcatenatedArray(PARTS), WHOLE


def of_maps(folder: Path) -> tuple[LazyArray, np.ndarray]:
    for i, part in enumerate(PARTS):
        np.save(folder / f"{i}.npy", part)
    return ConcatenatedArray([np.load(folder / f"{i}.npy", mmap_mode="r") for i in range(4)]), WHOLE


def of_hdf5(folder: Path) -> tuple[LazyArray, np.ndarray]:
    file = h5py.File(folder / "file.hdf5", "w")
    for i, part in enumerate(PARTS):
        file[f"data/{i}"] = part
    return ConcatenatedArray([file[f"data/{i}"] for i in range(4)]), WHOLE


def of_loads(folder: Path) -> tuple[LazyArray, np.ndarray]:
    cache = Cache(lambda i: {"x": PARTS[i]}, max_bytes=60)
    parts = [
        LoadedArray(lambda i=i: cache(i)["x"], (length, 2), np.float64)  # type: ignore[misc]
        for i, length in enumerate(LENGTHS)
    ]
    return ConcatenatedArray(parts), WHOLE.astype(np.float64)


def of_conversion(folder: Path) -> tuple[LazyArray, np.ndarray]:
    source = ConcatenatedArray(PARTS)
    return ConvertedArray(source, lambda x: x[:, 1:].astype(np.int16)), WHOLE[:, 1:].astype(
        np.int16
    )


def of_rows(folder: Path) -> tuple[LazyArray, np.ndarray]:
    rows = np.roll(np.arange(15), 4)
    return RowsOf(RowsOf(of_hdf5(folder)[0], rows[::-1]), rows), WHOLE[rows[::-1]][rows]


KINDS = [of_memory, of_maps, of_hdf5, of_loads, of_conversion, of_rows]


@pytest.mark.parametrize("make", KINDS)
def test_reading_is_as_of_the_array_in_memory(make: Any, tmp_path: Path) -> None:
    lazy, array = make(tmp_path)
    assert (lazy.shape, lazy.dtype, lazy.ndim, len(lazy)) == (array.shape, array.dtype, 2, 15)
    keys: list[Any] = [
        *(0, 14, -1, np.int64(5), slice(None), slice(3, 9), slice(12, 2, -3), slice(5, 5)),
        *(ROWS, ROWS.tolist(), np.sort(ROWS), np.array([], np.int64), np.array([-1, -15, 2])),
        *(array[:, 0] % 3 == 0, (3, 0), (slice(2, 9), 0), (ROWS, slice(None, 1))),
    ]
    for key in keys:
        found = lazy[key]
        np.testing.assert_array_equal(found, array[key])
        assert found.dtype == array.dtype
    np.testing.assert_array_equal(np.asarray(lazy), array)
    assert np.asarray(lazy, np.float16).dtype == np.float16
    joined = [chunk for _, chunk in chunks(lazy, max_bytes=10)]
    assert len(joined) > 2
    np.testing.assert_array_equal(np.concatenate(joined), array)


@pytest.mark.parametrize("make", KINDS)
def test_rows_out_of_bounds_are_refused(make: Any, tmp_path: Path) -> None:
    lazy, _ = make(tmp_path)
    for key in (15, -16, [3, 15], np.array([-16])):
        with pytest.raises(IndexError, match="of an array of 15 rows"):
            lazy[key]
    with pytest.raises(IndexError, match="mask of shape"):
        lazy[np.ones(3, bool)]
    with pytest.raises(IndexError, match="expected a row"):
        lazy[np.zeros((2, 2), int)]


@pytest.mark.parametrize("make", KINDS)
def test_what_is_read_is_a_copy(make: Any, tmp_path: Path) -> None:
    lazy, array = make(tmp_path)
    expected = array.copy()
    lazy[2:6][...] = 0
    lazy[ROWS][...] = 0
    np.testing.assert_array_equal(np.asarray(lazy), expected)


def test_parts_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"actions\[1\]: shape \(3, 1\), expected \(length, 2\)"):
        ConcatenatedArray([np.zeros((3, 2)), np.zeros((3, 1))], "actions")
    with pytest.raises(ValueError, match="at least one"):
        ConcatenatedArray([])


def test_a_load_of_another_shape_is_refused() -> None:
    array = LoadedArray(lambda: np.zeros((3, 2)), (4, 2), np.float32)
    with pytest.raises(ValueError, match=r"shape \(3, 2\), expected \(4, 2\)"):
        array[0]


def test_the_cache_keeps_the_last_within_its_bytes() -> None:
    loads: list[int] = []

    def load(key: int) -> np.ndarray:
        loads.append(key)
        return np.zeros(10, np.uint8)

    cache = Cache(load, max_bytes=25)
    for key in (1, 2, 1, 3, 1, 2):
        cache(key)
    assert loads == [1, 2, 3, 2]
    again = pickle.loads(pickle.dumps(Cache(len, max_bytes=3)))
    assert again("abc") == 3


def test_datasets_are_lazy_and_tensors_are_not(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["x"] = WHOLE
        assert is_lazy(file["x"]) and isinstance(as_source(file["x"]), LazyArray)
        np.testing.assert_array_equal(as_source(file["x"])[ROWS], WHOLE[ROWS])
    assert not is_lazy(WHOLE) and as_source(WHOLE) is WHOLE
    assert isinstance(as_source([1, 2]), np.ndarray)


class Unread(LazyArray):
    """Fails where it is read."""

    def read(self, rows: np.ndarray) -> np.ndarray:
        raise AssertionError("read")


def test_demonstrations_do_not_read_lazy_arrays() -> None:
    lazy = Demonstrations(
        Unread((10, 3), np.float32), Unread((10, 2), np.float32), np.array([4, 10])
    )
    parts = [*lazy.split(0.5), lazy.subset([1, 0]), Demonstrations.concatenate([lazy, lazy])]
    parts.append(
        Demonstrations.from_arrays(
            [{"a": Unread((4, 3), np.uint8)}, {"a": Unread((2, 3), np.uint8)}],
            [Unread((4, 2), np.float32), Unread((2, 2), np.float32)],
        )
    )
    assert [part.n_decisions for part in parts] in ([6, 4, 10, 20, 6], [4, 6, 10, 20, 6])
    assert len(parts[-1]) == 2
