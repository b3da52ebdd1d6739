"""The readers of :class:`Demonstrations`, each a door to the module of its format."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from sb3_diffrl.demonstrations.robot_readers import RobotReaders

if TYPE_CHECKING:
    import minari
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.vec_env import VecEnv

    from sb3_diffrl.demonstrations.dataset import Demonstrations

Path = str | os.PathLike[str]


class Readers(RobotReaders):
    """Class methods that read demonstrations; modules and packages are imported when called."""

    @classmethod
    def from_npz(cls, path: Path) -> Demonstrations:
        """
        Read the one file that :meth:`Demonstrations.save` wrote into memory.

        :param path: the ``.npz`` file
        :return: the demonstrations
        :raises ValueError: where the file is truncated, lacks an array or holds pickles
        """
        from sb3_diffrl.demonstrations.files import read_npz

        return read_npz(path)

    @classmethod
    def from_demos(cls, path: Path) -> Demonstrations:
        """
        Map the folder that :meth:`Demonstrations.save` wrote into memory, without reading it.

        :param path: the ``.demos`` folder
        :return: the demonstrations
        :raises ValueError: where a file is missing, truncated or not as the metadata say
        """
        from sb3_diffrl.demonstrations.files import read_demos

        return read_demos(path)

    @classmethod
    def from_minari(
        cls, source: Path | minari.MinariDataset, download: bool = True
    ) -> Demonstrations:
        """
        Read a Minari dataset, lazily; pip install 'sb3-diffrl[minari]'.

        The observation after an episode's last action, which Minari keeps, is left out. Successes
        are taken from ``infos`` (``success`` or ``is_success`` at any step) where those are there.

        :param source: the dataset, its id (``mujoco/hopper/medium-v0``) or its folder
        :param download: whether to download an id that is not there
        :return: its episodes
        :raises ValueError: naming file, key and episode of what is wrong
        """
        from sb3_diffrl.demonstrations.minari import read

        return read(source, download)

    @classmethod
    def from_d4rl(cls, source: Path | Mapping[str, Any]) -> Demonstrations:
        """
        Read a dataset in the layout of D4RL (Fu et al. 2020, https://arxiv.org/abs/2004.07219).

        Episodes end where ``terminals`` or ``timeouts`` say so; decisions after the last end make
        an episode too. Successes are taken from ``infos/success`` or ``infos/goal_achieved``.

        :param source: an HDF5 or ``.npz`` file, or the dictionary that ``get_dataset`` returns
        :return: its episodes, lazily from HDF5
        :raises ValueError: naming file, key and index of what is wrong
        """
        from sb3_diffrl.demonstrations.d4rl import read

        return read(source)

    @classmethod
    def from_rollouts(
        cls,
        policy: BaseAlgorithm | Callable[[Any], Any],
        env: VecEnv,
        n_episodes: int,
        deterministic: bool = True,
        seed: int | None = None,
        progress_bar: bool = False,
    ) -> Demonstrations:
        """
        Record episodes of a policy.

        Each environment gives its share of the episodes, so that short ones are not favoured.
        Under ``VecNormalize`` observations and rewards are recorded as they are before it.

        :param policy: any SB3 model, or a function of the batch of observations that ``env`` gives
            to actions ``(N, *action_shape)``
        :param env: ``N`` environments
        :param n_episodes: number of episodes
        :param deterministic: how a model predicts
        :param seed: of the environments; None leaves them as they are
        :param progress_bar: whether to show one
        :return: the episodes with rewards, and successes where ``info["is_success"]`` is there at
            the end of each
        """
        from sb3_diffrl.demonstrations.rollouts import record

        return record(policy, env, n_episodes, deterministic, seed, progress_bar)
