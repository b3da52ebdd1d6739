"""
How many modes a policy's actions have, and how much entropy (paper, section 3.4).

Both measures are made from samples alone, so they compare a diffusion policy, whose density is not
known in closed form, with a Gaussian one. Actions are often clipped, and a trained policy may be
all but deterministic: then the samples have no density. ``resolution`` gives them one: the measures
are those of the samples blurred by Gaussian noise of that standard deviation.
"""

import math
from operator import itemgetter
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv
from scipy.spatial import cKDTree
from scipy.special import digamma, gammaln
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_diffrl.evaluation import as_vec_env, fresh_exploration
from sb3_diffrl.random_state import preserved_random_state
from sb3_diffrl.wrappers.observation_history import map_parts

RESOLUTION = 0.02  # a hundredth of the range of actions scaled to [-1, 1]
BATCH = 2048  # rows that a model predicts at once


def knn_entropy(samples: np.ndarray, k: int = 3, resolution: float = 0.0) -> float:
    """
    Differential entropy by the distances ``r_i`` to the ``k``-th nearest neighbours,
    ``ψ(M) − ψ(k) + ln V_D + D/M Σ ln r_i`` with ``V_D`` the volume of the unit ball (Kozachenko &
    Leonenko 1987; the form for any ``k``: Kraskov, Stögbauer & Grassberger 2004, equation 20).

    Samples that coincide have no density, and the entropy is -inf: the answer for a deterministic
    policy. With a ``resolution`` it is finite, and no lower than the blur's own entropy,
    ``D ln(resolution √(2πe))``.

    :param samples: ``(M, D)``
    :param k: which neighbour: larger for less variance and more bias
    :param resolution: standard deviation of the blur, in the samples' units; 0 for none
    :return: nats; -inf where a sample has ``k`` others in its very place
    :raises ValueError: for samples of another shape, not finite, or no more than ``k``
    """
    samples = _blurred(samples, k, resolution)
    n, dim = samples.shape
    distances = cKDTree(samples).query(samples, [k + 1])[0]  # the nearest is the sample itself
    if not distances.all():
        return -math.inf
    log_volume = dim / 2 * math.log(math.pi) - gammaln(dim / 2 + 1)
    return float(digamma(n) - digamma(k) + log_volume + dim * np.log(distances).mean())


class Modes(NamedTuple):
    """
    The modes of ``M`` samples.

    :param labels: ``(M,)``, 0 for the largest mode's samples, -1 for those of none
    :param sizes: ``(n,)`` number of samples of each, falling
    """

    labels: np.ndarray
    sizes: np.ndarray

    @property
    def number(self) -> int:
        """How many modes there are."""
        return len(self.sizes)

    @property
    def evenness(self) -> float:
        """
        ``-Σ p ln p / ln n`` of the modes' sizes: 1 where all are equally large, 0 for one mode.
        """
        p = self.sizes / self.sizes.sum()
        return float(-np.sum(p * np.log(p)) / np.log(len(p))) if len(p) > 1 else 0.0


def count_modes(
    samples: np.ndarray,
    resolution: float = RESOLUTION,
    valley: float = 0.25,
    min_fraction: float = 0.05,
    k: int = 15,
) -> Modes:
    """
    Peaks of the samples' density that stand out, each with the samples that lie uphill to it.

    The density is that of the ``k`` nearest neighbours. From the densest sample down each joins its
    densest neighbour's peak; two peaks that meet become one unless the density where they meet is
    below ``valley`` times the lower peak (ToMATo: Chazal, Guibas, Oudot & Skraba 2013, here with a
    relative prominence, so that no scale of the density enters).

    :param samples: ``(M, D)``; a few hundred
    :param resolution: standard deviation of the blur, in the samples' units: what lies closer is
        one peak. The default is for actions scaled to [-1, 1]
    :param valley: how deep it must be, as a fraction of the lower peak's density
    :param min_fraction: share of the samples that a mode must have; those of lesser ones are noise
    :param k: neighbours: more for fewer spurious peaks, and blunter ones
    :return: the modes, largest first
    :raises ValueError: for samples of another shape, not finite, or no more than ``k``
    """
    samples = _blurred(samples, k, resolution)
    n, dim = samples.shape
    distances, neighbours = cKDTree(samples).query(samples, k + 1)
    height = -dim * np.log(np.maximum(distances[:, -1], np.finfo(float).tiny))  # log density + c
    # Edges of the graph as they appear when the water falls: (upper end, lower end).
    ends = np.stack([np.repeat(np.arange(n), k), neighbours[:, 1:].ravel()])
    upper = np.where(height[ends[0]] >= height[ends[1]], *ends)
    lower = ends.sum(axis=0) - upper
    order = np.lexsort((-height[upper], -height[lower]))

    peak = np.arange(n)  # union-find: a step towards the peak

    def find(i: int) -> int:
        while peak[i] != i:
            peak[i] = peak[peak[i]]
            i = peak[i]
        return i

    for a, b in zip(upper[order].tolist(), lower[order].tolist(), strict=True):
        high, low = find(a), find(b)
        if height[high] < height[low]:
            high, low = low, high
        if high != low and height[b] - height[low] >= math.log(valley):
            peak[low] = high

    _, found, sizes = np.unique(
        [find(i) for i in range(n)], return_inverse=True, return_counts=True
    )
    largest = np.argsort(-sizes, kind="stable")
    kept = largest[sizes[largest] >= min_fraction * n]
    names = np.full(len(sizes), -1)
    names[kept] = np.arange(len(kept))
    return Modes(names[found], sizes[kept])


def action_samples(
    model: BaseAlgorithm,
    observations: np.ndarray | dict[str, np.ndarray],
    n_samples: int = 500,
    deterministic: bool = False,
    seed: int = 0,
) -> np.ndarray:
    """
    Actions that a model draws at each of ``B`` observations, independent of one another.

    The global random generators are left as they were, and so is the model's noise under gSDE.

    :param model: any model of SB3's with continuous actions
    :param observations: ``(B, *obs_shape)`` or a dictionary of such arrays, as the model sees them,
        that is normalised where it was trained under ``VecNormalize``
    :param n_samples: number ``n`` of draws at each
    :param deterministic: how the model predicts
    :param seed: of the draws
    :return: ``(B, n, D)`` in [-1, 1], chunks of actions flattened
    :raises ValueError: for a single observation, and for actions that are not a ``Box``
    """
    space = model.action_space
    if not isinstance(space, gym.spaces.Box):
        raise ValueError(f"Modes are measured of continuous actions (a Box), got {space}.")
    if not model.policy.obs_to_tensor(observations)[1]:
        raise ValueError(
            f"observations: expected a batch, (B, *{model.observation_space.shape}), got a single "
            "one; index it with [None]."
        )
    rows = map_parts(lambda part: np.repeat(part, n_samples, axis=0), observations)
    n_rows = len(next(iter(rows.values())) if isinstance(rows, dict) else rows)
    drawn = []
    with preserved_random_state(seed):
        for start in range(0, n_rows, BATCH):
            batch = map_parts(itemgetter(slice(start, start + BATCH)), rows)
            with fresh_exploration(model, min(BATCH, n_rows - start)):
                drawn.append(model.predict(batch, deterministic=deterministic)[0])
    actions = model.policy.scale_action(np.concatenate(drawn)).reshape(n_rows, -1)
    return actions.reshape(-1, n_samples, actions.shape[-1])


def start_observations(
    env: gym.Env | VectorEnv | VecEnv, n: int, seed: int = 0
) -> np.ndarray | dict[str, np.ndarray]:
    """
    The first observations of ``n`` episodes.

    :param env: environment, not the one of training: it is seeded and reset
    :param n: how many
    :param seed: of the env
    :return: ``(n, *obs_shape)``, or a dictionary of such arrays
    """
    vec_env = as_vec_env(env)
    found: list[Any] = []
    with preserved_random_state(seed):
        vec_env.seed(seed)
        for _ in range(-(-n // vec_env.num_envs)):
            found.append(map_parts(np.array, vec_env.reset()))
    if isinstance(found[0], dict):
        return {key: np.concatenate([part[key] for part in found])[:n] for key in found[0]}
    return np.concatenate(found)[:n]


def _blurred(samples: np.ndarray, k: int, resolution: float) -> np.ndarray:
    """Checked float64 samples, with the blur added."""
    samples = np.asarray(samples, dtype=np.float64)
    if samples.ndim != 2 or not samples.shape[1]:
        raise ValueError(f"samples: expected shape (M, D), got {samples.shape}.")
    if not 1 <= k < len(samples):
        raise ValueError(
            f"k={k} neighbours need k ≥ 1 and more than k samples, got {len(samples)}."
        )
    if not np.isfinite(samples).all():
        raise ValueError("samples: NaN or infinite entries, expected finite numbers.")
    if not 0 <= resolution < math.inf:
        raise ValueError(f"resolution: {resolution}, expected a finite number of at least 0.")
    # A seed that no caller is likely to have drawn the samples with.
    noise = np.random.default_rng(0x6D6F646573).standard_normal(samples.shape)
    return samples + resolution * noise
