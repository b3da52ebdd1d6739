"""Demonstrations on disk: one compressed ``.npz``, or a folder of arrays that are memory-mapped."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sb3_diffrl.demonstrations.arrays import Source, chunks

if TYPE_CHECKING:
    from sb3_diffrl.demonstrations.dataset import Demonstrations

FORMAT_VERSION = 1

_PREFIX = "observations/"
_SUFFIXES = (".npz", ".demos")
_FIELDS = ("actions", "episode_ends", "rewards", "successes", "weights")
_METADATA = "metadata.json"


def with_suffix(path: str | os.PathLike[str]) -> Path:
    """
    :param path: of a file or folder
    :return: the same, with ``.npz`` where it has neither that suffix nor ``.demos``
    """
    path = Path(path)
    return path if path.suffix in _SUFFIXES else path.with_name(path.name + ".npz")


def save(
    demonstrations: Demonstrations, path: str | os.PathLike[str], progress_bar: bool = False
) -> Path:
    """See :meth:`Demonstrations.save`."""
    path = with_suffix(path)
    target = path.resolve()  # what a link points to is replaced, not the link
    is_folder = path.suffix != ".npz"
    if target.exists() and target.is_dir() != is_folder:
        found, expected = ("file", "folder") if is_folder else ("folder", "file")
        raise ValueError(
            f"{path}: there is a {found} of this name, expected none or a {expected} to replace; "
            "remove it or choose another name"
        )
    arrays = _to_arrays(demonstrations)
    for name, array in arrays.items():
        if array.dtype.hasobject:
            raise ValueError(f"{name}: dtype object cannot be saved without pickle")
    target.parent.mkdir(parents=True, exist_ok=True)
    with _in_place_of(target) as temporary:
        if is_folder:
            _write_folder(temporary, arrays, progress_bar)
        else:
            with temporary.open("wb") as file:
                loaded: Any = {name: np.asarray(array) for name, array in arrays.items()}
                np.savez_compressed(file, **loaded)
    return path


def read_npz(path: str | os.PathLike[str]) -> Demonstrations:
    """See :meth:`Demonstrations.from_npz`."""
    arrays = load_npz(path)
    return _from_arrays(path, arrays)


def load_npz(path: str | os.PathLike[str]) -> dict[str, Any]:
    """
    :param path: of an ``.npz`` file
    :return: all of its arrays, read into memory
    :raises ValueError: naming file and key where it is truncated, corrupt or holds pickles
    """
    if not Path(path).is_file():
        raise ValueError(f"{path}: there is no such file")
    arrays = {}
    name = ""
    try:
        with np.load(path, allow_pickle=False) as file:
            for name in file.files:
                arrays[name] = file[name]
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        where = f"{path}: {name!r}" if name else f"{path}"
        raise ValueError(
            f"{where} cannot be read: truncated, corrupt or pickled ({error})"
        ) from error
    return arrays


def read_demos(path: str | os.PathLike[str]) -> Demonstrations:
    """See :meth:`Demonstrations.from_demos`."""
    path = Path(path)
    source = path / _METADATA
    try:
        metadata = json.loads(source.read_text(encoding="utf-8"))
        version, described = metadata["format_version"], metadata["arrays"]
        expected = {
            name: (entry["file"], tuple(entry["shape"]), entry["dtype"])
            for name, entry in described.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{source}: not the metadata of demonstrations ({type(error).__name__}: {error})"
        ) from error
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{source}: format_version {version!r}, expected {FORMAT_VERSION}: written by another "
            "release of sb3-diffrl"
        )
    arrays = {}
    for name, (file, shape, dtype) in expected.items():
        if Path(file).name != file:
            raise ValueError(f"{source}: {name!r} names the file {file!r} outside the folder")
        try:
            array = np.load(path / file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(
                f"{path / file}: missing, truncated or corrupt ({error}); expected {name!r} of "
                f"shape {shape}"
            ) from error
        if array.shape != shape or array.dtype.str != dtype:
            raise ValueError(
                f"{path / file}: {name!r} has shape {array.shape} and dtype {array.dtype.str}, "
                f"expected {shape} and {dtype}, as {_METADATA} says"
            )
        arrays[name] = array
    return _from_arrays(path, arrays)


def _to_arrays(demonstrations: Demonstrations) -> dict[str, Source]:
    observations = demonstrations.observations
    arrays = (
        {_PREFIX + key: value for key, value in observations.items()}
        if isinstance(observations, dict)
        else {"observations": observations}
    )
    fields = {name: getattr(demonstrations, name) for name in _FIELDS}
    return arrays | {name: array for name, array in fields.items() if array is not None}


def _from_arrays(path: str | os.PathLike[str], arrays: dict[str, Any]) -> Demonstrations:
    from sb3_diffrl.demonstrations.dataset import Demonstrations

    by_key = {
        name.removeprefix(_PREFIX): array
        for name, array in arrays.items()
        if name.startswith(_PREFIX)
    }
    missing = [name for name in ("actions", "episode_ends") if name not in arrays]
    if not by_key and "observations" not in arrays:
        missing.append("observations")
    if missing:
        raise ValueError(f"{path}: not a file of demonstrations, it lacks {missing}")
    fields = {name: arrays[name] for name in _FIELDS if name in arrays}
    try:
        return Demonstrations(by_key or arrays["observations"], **fields)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _write_folder(folder: Path, arrays: dict[str, Source], progress_bar: bool) -> None:
    from tqdm.auto import tqdm

    folder.mkdir()
    n_bytes = sum(array.dtype.itemsize * int(np.prod(array.shape)) for array in arrays.values())
    described = {}
    with tqdm(
        total=n_bytes, unit="B", unit_scale=True, desc="saving", disable=not progress_bar
    ) as bar:
        for index, (name, array) in enumerate(arrays.items()):
            file = f"{name}.npy" if "/" not in name else f"observations_{index}.npy"
            described[name] = {"file": file, "shape": array.shape, "dtype": array.dtype.str}
            with (folder / file).open("wb") as stream:
                np.lib.format.write_array_header_2_0(
                    stream,
                    {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape},
                )
                for _, chunk in chunks(array):
                    stream.write(np.ascontiguousarray(chunk).data)
                    bar.update(chunk.nbytes)
    metadata = {"format_version": FORMAT_VERSION, "arrays": described}
    (folder / _METADATA).write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _in_place_of(target: Path) -> Iterator[Path]:
    """A path beside the target that replaces it, file or folder, where all went well."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        if target.is_dir():
            _replace_folder(temporary, target)
        else:
            temporary.replace(target)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


def _replace_folder(new: Path, target: Path) -> None:
    """Move a folder to where another is; the other stays until that is done."""
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    try:
        target.rename(old)
        new.replace(target)
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        raise
    shutil.rmtree(old)
