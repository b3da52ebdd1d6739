"""Files that are never there by half."""

import os
import pathlib

Path = str | pathlib.Path


def write_bytes(path: Path, content: bytes) -> None:
    """
    Write a file under a temporary name, then put it in its place.

    :param path: where; its folder is made
    :param content: what
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def write_text(path: Path, text: str) -> None:
    """
    As :func:`write_bytes`, in UTF-8.

    :param path: where; its folder is made
    :param text: what
    """
    write_bytes(path, text.encode())
