"""Datasets of HDF5 files that are opened when they are read."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sb3_diffrl.demonstrations.arrays import Array, LazyArray, Rows, take

if TYPE_CHECKING:
    import h5py


def open_file(path: str | os.PathLike[str]) -> h5py.File:
    """
    Open for reading, once; the last few files stay open, and so locked for writers, until
    :func:`close_files`. They are locked as h5py does by default, for HDF5 lets a process open a
    file twice, as users or Minari may, only where both ask for the same.

    :param path: of the file
    :return: the open file
    :raises ValueError: where it is truncated or no HDF5 file
    """
    path = Path(path).resolve()
    try:
        status = path.stat()
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such file") from None
    # Process, time and size: forked workers open their own, and a file written anew is read anew.
    return _open(path, os.getpid(), status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=16)
def _open(path: Path, *version: int) -> h5py.File:
    try:
        import h5py
    except ImportError as error:
        raise ImportError(
            f"{path}: HDF5 files need h5py: pip install 'sb3-diffrl[minari]'"
        ) from error
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path}: truncated, corrupt or no HDF5 file ({error})") from error


def close_files() -> None:
    """Close the files that stay open; they are opened again where they are read again."""
    _open.cache_clear()


def dataset(path: str | os.PathLike[str], key: str) -> h5py.Dataset:
    """
    :param path: of the file
    :param key: name of a dataset, with ``/`` between levels
    :return: the open dataset
    :raises ValueError: where it is missing, naming what is there
    """
    file = open_file(path)
    found = file.get(key)
    if not hasattr(found, "shape"):
        parent = file.get(key.rpartition("/")[0] or "/")
        there = sorted(parent) if hasattr(parent, "keys") else []
        raise ValueError(
            f"{path}: {key!r} is missing or no dataset; beside it there are {there[:20]}"
        )
    return found


class HDF5Array(LazyArray):
    """
    A dataset in an HDF5 file, or its first rows; it can be pickled, and read after a fork.

    :param path: of the file
    :param key: name of the dataset, with ``/`` between levels
    :param length: number of first rows; by default all
    :raises ValueError: where it is missing, not numeric or shorter than ``length``
    """

    def __init__(self, path: str | os.PathLike[str], key: str, length: int | None = None):
        self.path, self.key = Path(path).resolve(), key
        found = dataset(path, key)
        if found.dtype.kind not in "biuf":
            raise ValueError(f"{path}: {key!r} has dtype {found.dtype}, expected numbers")
        if found.ndim == 0 or len(found) < (length or 0):
            raise ValueError(f"{path}: {key!r} has shape {found.shape}, expected {length} rows")
        super().__init__((len(found) if length is None else length, *found.shape[1:]), found.dtype)

    def read(self, rows: Rows) -> Array:
        """See :meth:`LazyArray.read`."""
        try:
            return take(dataset(self.path, self.key), rows)
        except OSError as error:
            last = int(rows.max()) if len(rows) else 0
            raise ValueError(
                f"{self.path}: {self.key!r} cannot be read up to row {last}: truncated or corrupt "
                f"({error})"
            ) from error


def attributes(path: str | os.PathLike[str], key: str) -> dict[str, Any]:
    """
    :param path: of the file
    :param key: name of a group or dataset
    :return: its attributes
    """
    found = open_file(path).get(key)
    if found is None:
        raise ValueError(f"{path}: {key!r} is missing")
    return dict(found.attrs.items())
