"""The formats that demonstrations come in, by name, and how a path tells its own."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sb3_diffrl.demonstrations.dataset import Demonstrations


@dataclass(frozen=True)
class Format:
    """
    One format.

    :param holds: what it is, for messages
    :param recognises: whether an existing path is of this format
    :param reader: name of the class method of ``Demonstrations`` that reads a path or id
    """

    holds: str
    recognises: Callable[[Path], bool]
    reader: str

    def read(self, source: str | os.PathLike[str], **options: Any) -> Demonstrations:
        """
        :param source: path or id
        :param options: of the reader
        :return: the demonstrations
        """
        from sb3_diffrl.demonstrations.dataset import Demonstrations

        found: Demonstrations = getattr(Demonstrations, self.reader)(source, **options)
        return found


def npz_with(*keys: str) -> Callable[[Path], bool]:
    """
    :param keys: names of arrays
    :return: whether a path is an ``.npz`` file that has them
    """

    def recognises(path: Path) -> bool:
        if path.suffix != ".npz" or not zipfile.is_zipfile(path):
            return False
        with zipfile.ZipFile(path) as file:
            return {f"{key}.npy" for key in keys} <= set(file.namelist())

    return recognises


def hdf5_with(*keys: str) -> Callable[[Path], bool]:
    """
    :param keys: names of datasets or groups, with ``/`` between levels
    :return: whether a path is an HDF5 file that has them
    """

    def recognises(path: Path) -> bool:
        if not path.is_file() or path.open("rb").read(8) != b"\x89HDF\r\n\x1a\n":
            return False
        from sb3_diffrl.demonstrations.hdf5 import open_file

        file = open_file(path)
        return all(key in file for key in keys)

    return recognises


def folder_with(*patterns: str) -> Callable[[Path], bool]:
    """
    :param patterns: as of :meth:`pathlib.Path.glob`
    :return: whether a path is a folder with a match of each
    """
    return lambda path: path.is_dir() and all(any(path.glob(pattern)) for pattern in patterns)


D4RL_KEYS = ("observations", "actions", "terminals")

RLBENCH_FILES = (
    "low_dim_obs.pkl",
    "episodes/*/low_dim_obs.pkl",
    "variation*/episodes/*/low_dim_obs.pkl",
)

FORMATS: dict[str, Format] = {
    "npz": Format(
        "arrays in one .npz file",
        lambda path: path.suffix == ".npz" and not npz_with(*D4RL_KEYS)(path),
        "from_npz",
    ),
    "demos": Format(
        "memory-mapped arrays in a .demos folder",
        lambda path: path.is_dir() and path.suffix == ".demos",
        "from_demos",
    ),
    "minari": Format(
        "a Minari dataset, by folder or id", folder_with("data/metadata.json"), "from_minari"
    ),
    "d4rl": Format(
        "D4RL's arrays in HDF5 or .npz",
        lambda path: npz_with(*D4RL_KEYS)(path) or hdf5_with(*D4RL_KEYS)(path),
        "from_d4rl",
    ),
    "robomimic": Format("robomimic's HDF5", hdf5_with("data"), "from_robomimic"),
    "lerobot": Format("a LeRobot dataset", folder_with("meta/info.json"), "from_lerobot"),
    "imitation": Format(
        "trajectories saved by imitation", folder_with("state.json", "*.arrow"), "from_imitation"
    ),
    "calvin": Format("a split of CALVIN", folder_with("ep_start_end_ids.npy"), "from_calvin"),
    "rlbench": Format(
        "RLBench's demonstrations of a task, a variation or an episode",
        lambda path: any(folder_with(pattern)(path) for pattern in RLBENCH_FILES),
        "from_rlbench",
    ),
}


def format_of(path: Path) -> str:
    """
    :param path: of demonstrations
    :return: name of their format
    :raises ValueError: where it is none that is known, or several
    """
    if not path.exists():
        raise ValueError(f"{path}: there is no such file or folder in {Path.cwd()}")
    names = [name for name, known in FORMATS.items() if known.recognises(path)]
    if len(names) == 1:
        return names[0]
    found = f"could be {_listed(names)}" if names else "none of the known formats"
    raise ValueError(
        f'{path}: {found}. Say which by format="..." (on the command line --format); known are '
        + "; ".join(f"{name}, {known.holds}" for name, known in FORMATS.items())
    )


def read(
    source: str | os.PathLike[str], format: str | None = None, **options: Any
) -> Demonstrations:
    """
    Read demonstrations of any format.

    :param source: path, or an id where ``format`` has ids
    :param format: name of the format; by default told by what the path is
    :param options: of the reader
    :return: the demonstrations
    :raises ValueError: naming file, key and index of what is wrong
    """
    if format is None:
        format = format_of(Path(source))
    if format not in FORMATS:
        raise ValueError(f"format {format!r}: unknown; known are {_listed(list(FORMATS))}")
    return FORMATS[format].read(source, **options)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)
