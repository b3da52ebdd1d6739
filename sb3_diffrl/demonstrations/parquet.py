"""Columns of parquet files as arrays whose row groups are read when asked for."""

from __future__ import annotations

import io
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sb3_diffrl.demonstrations.arrays import Array, Cache, LazyArray, Rows
from sb3_diffrl.demonstrations.checks import inner
from sb3_diffrl.demonstrations.images import decode_image
from sb3_diffrl.demonstrations.reading import checked

CACHE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Block:
    """
    Rows that are read together.

    :param path: the file
    :param group: number of the row group, or None for the whole file
    :param n_rows: how many there must be
    """

    path: Path
    group: int | None
    n_rows: int


class _Column(LazyArray):
    """
    A column of blocks laid end to end.

    :param key: name of the column
    :param blocks: at least one
    """

    def __init__(self, key: str, blocks: Sequence[Block]):
        self.key, self.blocks = key, blocks
        self.ends = np.cumsum([block.n_rows for block in blocks])
        self.cache = Cache(self._values, CACHE_BYTES)
        first = self._rows_of_block(0, np.zeros(1, np.int64))
        super().__init__((int(self.ends[-1]), *first.shape[1:]), first.dtype)

    def read(self, rows: Rows) -> Array:
        """See :meth:`LazyArray.read`; each block is loaded once."""
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        owners = np.searchsorted(self.ends, rows, side="right")
        for owner in np.unique(owners):
            mine = np.flatnonzero(owners == owner)
            start = self.ends[owner] - self.blocks[owner].n_rows
            values = self._rows_of_block(int(owner), rows[mine] - start)
            if values.shape[1:] != self.shape[1:]:
                raise ValueError(
                    f"{self._where(int(owner))}: entries of shape {values.shape[1:]}, expected "
                    f"{self.shape[1:]}, as in {self.blocks[0].path}"
                )
            found[mine] = values
        return found

    @abstractmethod
    def _values(self, block: int) -> Any:
        """What is kept of a block."""

    @abstractmethod
    def _rows_of_block(self, block: int, rows: Rows) -> Array:
        """Rows of what is kept."""

    def _load(self, block: int) -> Any:
        at = self.blocks[block]
        column = _read_column(at, self.key)
        if len(column) != at.n_rows:
            raise ValueError(
                f"{at.path}: {len(column)} rows, expected {at.n_rows}, as the metadata says"
            )
        if column.null_count:
            bad = column.is_null().index(True).as_py()
            raise ValueError(f"{at.path}: {self.key}[{bad}] is missing, expected a value")
        return column

    def _where(self, block: int) -> str:
        at = self.blocks[block]
        return f"{at.path}: {self.key}" + (f" (row group {at.group})" if at.group else "")


class ParquetArray(_Column):
    """
    A column of numbers or of lists of numbers.

    :param key: name of the column
    :param blocks: at least one
    :param shape: of an entry; ``(1,)`` also where the file holds bare numbers
    """

    def __init__(self, key: str, blocks: Sequence[Block], shape: tuple[int, ...]):
        self.entry = shape
        super().__init__(key, blocks)

    def _values(self, block: int) -> Array:
        column, where = self._load(block), self._where(block)
        width = math.prod(self.entry)
        flat = self._flat(column, where)
        if flat.null_count:
            bad = flat.is_null().index(True).as_py()
            raise ValueError(f"{where}[{bad // width}, {bad % width}] is missing")
        values = flat.to_numpy(zero_copy_only=False)
        return checked(values.reshape(len(column), *self.entry), where)

    def _flat(self, column: Any, where: str) -> Any:
        """The numbers of all rows, once each list is known to be as long as it must be."""
        flat, lengths = column, []
        while hasattr(flat.type, "value_type"):  # a list
            lengths.append(_lengths(flat))
            flat = flat.flatten()
        if not lengths:  # bare numbers
            lengths = [np.ones(len(flat), np.int64)]
        # The numbers of an entry lie in one list, or in lists of lists of its shape.
        sizes = self.entry if len(lengths) == len(self.entry) else (math.prod(self.entry),)
        if len(lengths) != len(sizes):
            raise ValueError(f"{where}: {column.type}, expected lists of shape {self.entry}")
        for level, (found, size) in enumerate(zip(lengths, sizes, strict=True)):
            wrong = found != size
            if wrong.any():
                bad = int(np.argmax(wrong))
                index = np.unravel_index(bad, (len(column), *sizes[:level]))
                raise ValueError(
                    f"{where}[{inner(tuple(map(int, index)))}]: {found[bad]} numbers, expected "
                    f"{size}, the shape {self.entry} that the metadata says"
                )
        return flat

    def _rows_of_block(self, block: int, rows: Rows) -> Array:
        return self.cache(block)[rows]


class ParquetImages(_Column):
    """
    A column of encoded images, decoded row by row: ``(M, height, width, 3)`` uint8.

    :param key: name of the column, whose entries are ``{"bytes": ..., "path": ...}``
    :param blocks: at least one
    """

    def _values(self, block: int) -> dict[str, Array]:
        """The bytes of all images of a block, and where each ends."""
        column = self._load(block)
        if not hasattr(column, "field") or "bytes" not in {f.name for f in column.type}:
            raise ValueError(
                f"{self._where(block)}: {column.type}, expected images as structs with 'bytes'"
            )
        images = column.field("bytes").to_pylist()
        missing = [i for i, image in enumerate(images) if image is None]
        if missing:
            raise ValueError(
                f"{self._where(block)}[{missing[0]}]: no bytes; images kept in files of their own "
                "are not read, embed them with LeRobot's own scripts"
            )
        return {
            "bytes": np.frombuffer(b"".join(images), np.uint8),
            "ends": np.cumsum([len(image) for image in images]),
        }

    def _decode(self, block: int, row: int) -> Array:
        encoded = self.cache(block)
        start = encoded["ends"][row - 1] if row else 0
        data = encoded["bytes"][start : encoded["ends"][row]].tobytes()
        return decode_image(io.BytesIO(data), f"{self._where(block)}[{row}]")

    def _rows_of_block(self, block: int, rows: Rows) -> Array:
        images = [self._decode(block, int(row)) for row in rows]
        odd = next((i for i, image in enumerate(images) if image.shape != images[0].shape), None)
        if odd is not None:
            raise ValueError(
                f"{self._where(block)}[{rows[odd]}]: an image of shape {images[odd].shape}, "
                f"expected {images[0].shape}, as its neighbours"
            )
        return np.stack(images)


def row_groups(path: Path) -> list[Block]:
    """
    :param path: a parquet file
    :return: its row groups
    """
    metadata = _open(path).metadata
    return [Block(path, i, metadata.row_group(i).num_rows) for i in range(metadata.num_row_groups)]


def read_rows(path: Path, wanted: Callable[[str], bool]) -> list[dict[str, Any]]:
    """
    :param path: a parquet file
    :param wanted: whether a column of this name is read
    :return: its rows
    """
    file = _open(path)
    rows: list[dict[str, Any]] = file.read(
        columns=[name for name in file.schema_arrow.names if wanted(name)]
    ).to_pylist()
    return rows


def _lengths(lists: Any) -> Array:
    import pyarrow.compute as pc

    lengths: Array = pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False)
    return lengths


def _open(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path, memory_map=True)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file, though the metadata names it") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path}: no parquet file that can be read ({error})") from error


def _read_column(block: Block, key: str) -> Any:
    import pyarrow as pa

    with _open(block.path) as file:
        if key not in file.schema_arrow.names:
            raise ValueError(f"{block.path}: no column {key!r}; found {file.schema_arrow.names}")
        try:
            table = (
                file.read(columns=[key])
                if block.group is None
                else file.read_row_group(block.group, columns=[key])
            )
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{block.path}: {key}: truncated or corrupt ({error})") from error
    return table.column(key).combine_chunks()
