"""The readers of robotics' formats, each a door to the module of its format."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from sb3_diffrl.demonstrations.dataset import Demonstrations

Path: TypeAlias = str | os.PathLike[str]


class RobotReaders:
    """Class methods that read demonstrations; modules and packages are imported when called."""

    @classmethod
    def from_robomimic(cls, path: Path, *args: Any, **options: Any) -> Demonstrations:
        """
        Read an HDF5 file of robomimic; pip install 'sb3-diffrl[demonstrations]'.

        :param path: the file
        :param options: ``observation_keys``, ``concatenate``, ``mask``, ``success_reward``,
            ``transpose_images``, ``memory``, ``progress_bar``: see
            :func:`sb3_diffrl.demonstrations.robomimic.read`
        :return: its episodes
        :raises ValueError: naming file, key and index of what is wrong
        """
        from sb3_diffrl.demonstrations import robomimic

        return robomimic.read(path, *args, **options)

    @classmethod
    def from_lerobot(cls, path: Path, *args: Any, **options: Any) -> Demonstrations:
        """
        Read a LeRobot dataset, format 2.0, 2.1 or 3.0; pip install 'sb3-diffrl[demonstrations]'.

        :param path: the folder that holds ``meta/info.json``
        :param options: ``observation_keys``, ``concatenate``, ``action_key``, ``episodes``,
            ``language``, ``transpose_images``, ``memory``, ``progress_bar``: see
            :func:`sb3_diffrl.demonstrations.lerobot.read`
        :return: its episodes
        :raises ValueError: naming file, key and index of what is wrong
        """
        from sb3_diffrl.demonstrations import lerobot

        return lerobot.read(path, *args, **options)

    @classmethod
    def from_imitation(
        cls, source: Path | Iterable[Any], *args: Any, **options: Any
    ) -> Demonstrations:
        """
        Read trajectories of imitation; its folders need pip install 'sb3-diffrl[demonstrations]'.

        :param source: ``Trajectory`` objects, or the folder where imitation saved them
        :param options: ``memory``, ``progress_bar``: see
            :func:`sb3_diffrl.demonstrations.imitation.read`
        :return: an episode for each
        :raises ValueError: naming file or trajectory, key and index of what is wrong
        """
        from sb3_diffrl.demonstrations import imitation

        return imitation.read(source, *args, **options)

    @classmethod
    def from_calvin(cls, path: Path, *args: Any, **options: Any) -> Demonstrations:
        """
        Read a split of CALVIN: its annotated segments, with their sentence embeddings, or its play.

        :param path: the folder, such as ``task_D_D/training``
        :param options: ``observation_keys``, ``concatenate``, ``action_key``, ``annotated``,
            ``language``, ``tasks``, ``transpose_images``, ``memory``, ``progress_bar``: see
            :func:`sb3_diffrl.demonstrations.calvin.read`
        :return: its episodes
        :raises ValueError: naming file, key and index of what is wrong
        """
        from sb3_diffrl.demonstrations import calvin

        return calvin.read(path, *args, **options)

    @classmethod
    def from_rlbench(cls, path: Path, *args: Any, **options: Any) -> Demonstrations:
        """
        Read demonstrations of RLBench. No code of theirs is run.

        :param path: the folder of a task, of a variation or of an episode
        :param options: ``observation_keys``, ``concatenate``, ``actions``, ``language``,
            ``transpose_images``, ``memory``, ``progress_bar``: see
            :func:`sb3_diffrl.demonstrations.rlbench.read`
        :return: its episodes
        :raises ValueError: naming file, key and index of what is wrong
        """
        from sb3_diffrl.demonstrations import rlbench

        return rlbench.read(path, *args, **options)
