"""The algorithm as the Zoo builds it: pre-training and RL by one ``train``."""

import copy
import threading
from collections.abc import Mapping
from typing import Any, TypeVar

import torch as th
from stable_baselines3.common.type_aliases import GymEnv

from sb3_diffrl import diffusion_ppo
from sb3_diffrl.policies import DiffusionActorCriticPolicy
from sb3_diffrl.zoo.hyperparams import linear, load_demonstrations, undotted

Self = TypeVar("Self", bound="DiffusionPPO")

# A policy's arguments that choose how it is sampled and what RL trains: one prior serves all.
SAMPLING = {
    *("denoising_steps", "eta", "sigma_min", "exploration", "finetuned_steps", "freeze_encoder"),
    *("timestep_spacing", "use_clipped_model_output", "optimizer_class", "optimizer_kwargs"),
}

# Actors trained in this process, by what they were trained with: the trials of a study differ in
# what comes after, and would each train the same one.
_PRIORS: dict[str, dict[str, th.Tensor]] = {}
_PRIORS_LOCK = threading.Lock()  # trials run in threads (--n-jobs)


def own_arguments(hyperparams: Mapping[str, Any]) -> dict[str, Any]:
    """
    :param hyperparams: as they stand in an entry
    :return: as :class:`DiffusionPPO` keeps them: without dots, learning rates as schedules,
        ``pretrain`` (which is a method) by another name
    """
    arguments = undotted(hyperparams)
    if "pretrain" in arguments:
        arguments["pretrain_arguments"] = dict(arguments.pop("pretrain") or {})
    if "critic_learning_rate" in arguments:
        arguments["critic_learning_rate"] = linear(arguments["critic_learning_rate"])
    return arguments


class DiffusionPPO(diffusion_ppo.DiffusionPPO):
    """
    DiffusionPPO whose hyperparameters include what comes before RL, so that one ``train`` does
    both.

    A name with a dot sets one entry of a mapping, see :func:`undotted`.

    :param policy: as in :class:`sb3_diffrl.DiffusionPPO`
    :param env: as in there
    :param args: as in there
    :param demonstrations: see :func:`load_demonstrations`; None for none
    :param pretrain: arguments of ``pretrain``, which is called when training starts, unless the
        model has a prior already
    :param kwargs: as in there; ``critic_learning_rate`` may be ``"lin_1.0e-3"``
    """

    def __init__(
        self,
        policy: str | type[DiffusionActorCriticPolicy],
        env: GymEnv | str,
        *args: Any,
        demonstrations: Any = None,
        pretrain: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ):
        named = own_arguments({"pretrain": pretrain, **kwargs})
        self.demonstrations = demonstrations
        self.pretrain_arguments = named.pop("pretrain_arguments")
        super().__init__(policy, env, *args, **named)

    @classmethod
    def load(cls: type[Self], path: Any, *args: Any, **kwargs: Any) -> Self:
        """
        Load as SB3 does.

        :param path: file
        :param args: as in SB3
        :param kwargs: as in SB3, or hyperparameters, of which those of the policy and the prior are
            passed over: the file has its own
        :return: the model
        """
        of_file = ("policy_kwargs", "prior")
        own = {name: value for name, value in kwargs.items() if name.split(".")[0] not in of_file}
        return super().load(path, *args, **own_arguments(own))

    def learn(self: Self, total_timesteps: int, *args: Any, **kwargs: Any) -> Self:
        """
        Pre-train where that is still to do, then train online.

        :param total_timesteps: number of decisions; 0 for pre-training alone
        :param args: as in SB3
        :param kwargs: as in SB3
        :return: the model
        """
        if self.demonstrations is not None:
            self._use_demonstrations()
        return super().learn(total_timesteps, *args, **kwargs)

    def _use_demonstrations(self) -> None:
        imitates = self._imitates("demonstrations") or self._imitates("context")
        if self.policy.has_prior and not (
            imitates and self.imitation_buffer.demonstrations is None
        ):
            return
        demonstrations = load_demonstrations(self.demonstrations)
        if self.policy.has_prior:
            self.set_demonstrations(demonstrations)
            return
        if self.verbose:
            print(f"Pre-training on {demonstrations}")
        env = self._vec_normalize_env
        if env is not None and env.norm_obs:  # the env's statistics belong to the prior
            self.pretrain(demonstrations, **self.pretrain_arguments)
            return
        key = self._prior_key()
        with _PRIORS_LOCK:
            if key in _PRIORS:
                self.policy.actor.load_state_dict(_PRIORS[key])
                self.policy.freeze_prior()
                self._forget_improvement()
                self.set_demonstrations(demonstrations)
            else:
                self.pretrain(demonstrations, **self.pretrain_arguments)
                _PRIORS[key] = copy.deepcopy(self.policy.actor.state_dict())

    def _prior_key(self) -> str:
        """:return: the same where pre-training makes the same actor"""
        policy = self.policy
        kwargs = {k: v for k, v in policy.architecture().items() if k not in SAMPLING}
        network = (type(policy), kwargs, policy.actor)
        windows = (self.env_wrappers, policy.observation_space, policy.action_space)
        training = (self.demonstrations, self.pretrain_arguments, self.seed, self.precision)
        return repr((network, windows, training))
