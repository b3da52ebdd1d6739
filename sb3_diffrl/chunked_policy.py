"""A model that predicts chunks, one action at a time: for the robot, without env wrappers."""

from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from operator import itemgetter
from typing import Any

import numpy as np

from sb3_diffrl.demonstrations.windows import lay_out_history
from sb3_diffrl.diffusion_ppo import DiffusionPPO
from sb3_diffrl.wrappers import ActionChunkWrapper, ObservationHistoryWrapper
from sb3_diffrl.wrappers.action_chunks import checked_n_executed
from sb3_diffrl.wrappers.observation_history import map_parts
from sb3_diffrl.wrappers.records import find


class ChunkedPolicy:
    """
    Acts step by step on plain observations as the model does in its wrapped env: keeps the history,
    predicts a chunk every ``n`` steps and hands out its actions, see
    :class:`~sb3_diffrl.wrappers.ActionChunkWrapper` for the timeline.

    With a ``delay`` of ``d`` steps chunks are computed in a thread beside: the one whose
    observation came with step ``t`` is needed at step ``t + d``, and :meth:`predict` waits only
    where it is not ready by then, and for the first one of an episode.

    With ``ensemble = m`` all chunks that speak of a step are averaged, the ``i``-th oldest with
    weight ``exp(-m i)`` (temporal ensembling, Zhao et al. 2023, algorithm 2). This smooths where
    successive chunks agree, and is no action at all where they follow different modes; a
    deterministic policy changes modes less often::

        step              0  1  2  3  4  5      H = 4, n = 1
        decision 1       a0 a1 a2 a3
        decision 2          b0 b1 b2 b3
        decision 3             c0 c1 c2 c3
        executed at 2          a2 b1 c0  ->  (a2 + exp(-m) b1 + exp(-2m) c0) / (1 + ...)

    :param model: trained or pre-trained in an env with action chunks
    :param n_executed: number ``n`` of steps between predictions; by default as in the model's env,
        and with ``ensemble`` as few as can be
    :param start: index of the action of the current step; by default as in the model's env
    :param delay: number ``d`` of steps that a prediction takes, 0 to ``n - 1``; by default as in
        the model's env
    :param ensemble: ``m``, 0 for equal weights, 0.01 in the paper; None to follow the newest chunk
    :param deterministic: how the model predicts
    :raises ValueError: for a model without action chunks, and where the numbers do not fit
    """

    def __init__(
        self,
        model: DiffusionPPO,
        n_executed: int | None = None,
        start: int | None = None,
        delay: int | None = None,
        ensemble: float | None = None,
        deterministic: bool = False,
    ):
        chunk = find(model.env_wrappers, ActionChunkWrapper.__name__)
        if chunk is None:
            raise ValueError(
                "ChunkedPolicy needs a model that predicts chunks: train it in an env wrapped in "
                f"sb3_diffrl.wrappers.ActionChunkWrapper. Its env had {model.env_wrappers}."
            )
        history: Mapping[str, Any] = (
            find(model.env_wrappers, ObservationHistoryWrapper.__name__) or {}
        )
        self.model, self.ensemble, self.deterministic = model, ensemble, deterministic
        self.horizon = chunk["horizon"]
        self.start = chunk["start"] if start is None else start
        self.delay = chunk["delay"] if delay is None else delay
        if n_executed is None:
            n_executed = chunk["n_executed"] if ensemble is None else 1 + self.delay
        self.n_executed = checked_n_executed(self.horizon, n_executed, self.start, self.delay)
        if ensemble is not None and not 0 <= ensemble < np.inf:
            raise ValueError(f"ensemble must be a finite number of at least 0, got {ensemble}.")
        self.n_observations: int | None = history.get("n_observations")
        self._thread = ThreadPoolExecutor(1) if self.delay else None
        self._pending: Future[np.ndarray] | None = None
        self.reset()

    def reset(self) -> None:
        """Begin an episode."""
        pending, self._pending = self._pending, None
        if pending is not None:
            wait([pending])  # it draws from the same random generator as what comes
        self._step = 0
        self._history: deque[Any] = deque(maxlen=self.n_observations or 1)
        self._chunks: deque[tuple[int, np.ndarray]] = deque()  # step of the observation, actions

    def predict(self, observation: Any) -> np.ndarray:
        """
        :param observation: of this step, ``(*obs_shape)`` or a dictionary of such arrays; as the
            model sees it, that is normalised where it was trained under ``VecNormalize``
        :return: action of this step ``(*shape)``, in the env's units
        """
        observation = map_parts(np.array, observation)  # a copy, for envs that write in place
        missing = 0 if self._history else (self.n_observations or 1) - 1
        self._history.extend([observation] * (1 + missing))
        phase = self._step % self.n_executed
        if phase == 0:
            self._pending = self._submit(self._seen())
        if self._pending is not None and (phase == self.delay or self._step == 0):
            pending, self._pending = self._pending, None
            self._chunks.append((self._step - phase, pending.result()))
        while self._index(self._chunks[0][0]) >= self.horizon:
            self._chunks.popleft()
        actions = [chunk[self._index(made_at)] for made_at, chunk in self._chunks]
        self._step += 1
        if self.ensemble is None:
            return actions[-1]
        weights = np.exp(-self.ensemble * np.arange(len(actions)))
        average = np.tensordot(weights / weights.sum(), actions, axes=1)
        return average.astype(actions[-1].dtype)

    def _index(self, made_at: int) -> int:
        """Of the current step's action in a chunk from the observation of an earlier step."""
        return self.start + self._step - made_at

    def _seen(self) -> Any:
        if self.n_observations is None:
            return self._history[-1]
        if isinstance(self._history[0], dict):
            keys = self._history[0]
            return {k: lay_out_history(np.stack([o[k] for o in self._history])) for k in keys}
        return lay_out_history(np.stack(self._history))

    def _submit(self, seen: Any) -> Future[np.ndarray]:
        if self._thread is not None:
            return self._thread.submit(self._chunk, seen)
        done = Future[np.ndarray]()
        done.set_result(self._chunk(seen))
        return done

    def _chunk(self, seen: Any) -> np.ndarray:
        return self.model.predict(seen, deterministic=self.deterministic)[0]


class ChunkedPolicies:
    """
    A :class:`ChunkedPolicy` for each env of a ``VecEnv`` without wrappers, called as a model is.

    :param model: trained or pre-trained in an env with action chunks
    :param n_envs: number of envs
    :param kwargs: of :class:`ChunkedPolicy`
    """

    def __init__(self, model: DiffusionPPO, n_envs: int, **kwargs: Any):
        self.policies = [ChunkedPolicy(model, **kwargs) for _ in range(n_envs)]

    def predict(
        self,
        observation: Any,
        state: None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, None]:
        """
        :param observation: of this step, ``(n_envs, *obs_shape)`` or a dictionary of such arrays
        :param state: none
        :param episode_start: which envs begin an episode; by default none
        :param deterministic: how the model predicts
        :return: actions of this step ``(n_envs, *shape)``, and no state
        """
        actions = []
        for i, policy in enumerate(self.policies):
            if episode_start is not None and episode_start[i]:
                policy.reset()
            policy.deterministic = deterministic
            actions.append(policy.predict(map_parts(itemgetter(i), observation)))
        return np.stack(actions), None
