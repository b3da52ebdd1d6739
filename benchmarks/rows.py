"""Rows of results as CSV: a line for each ``NamedTuple`` of strings and numbers."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from sb3_diffrl.files import write_text

Row = TypeVar("Row", bound=tuple[Any, ...])


def read_rows(path: Path, kind: type[Row]) -> list[Row]:
    """
    :param path: a results file, which may be missing
    :param kind: what a row is
    :return: its rows
    """
    if not path.exists():
        return []
    types = kind.__annotations__
    with path.open(newline="") as file:
        return [
            kind(*(convert(line[name]) for name, convert in types.items()))
            for line in csv.DictReader(file)
        ]


def write_rows(path: Path, rows: Sequence[tuple[Any, ...]], kind: type[tuple[Any, ...]]) -> None:
    """
    Write a results file anew.

    :param path: the file; never left half written
    :param rows: its lines
    :param kind: what a row is
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([tuple(kind.__annotations__), *rows])
    write_text(path, text.getvalue())
