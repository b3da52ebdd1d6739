"""A whole model as plain data and tensors, and back."""

import inspect
import json
import math
import random
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, TypeVar

import numpy as np
import stable_baselines3
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from sb3_diffrl.action_scale import check_action_space
from sb3_diffrl.diffusion_ppo import DiffusionPPO
from sb3_diffrl.policies import DiffusionActorCriticPolicy
from sb3_diffrl.random_state import get_random_state, preserved_random_state, set_random_state
from sb3_diffrl.sharing.checks import at, entries, list_of, one_of, optional, real, short, whole
from sb3_diffrl.sharing.policy import (
    decode_policy,
    encode_policy,
    optimizers,
    parameters,
    unique_tensors,
)
from sb3_diffrl.sharing.settings import (
    HYPERPARAMETERS,
    PROGRESS,
    check_env_wrappers,
    decode_all,
    encode_all,
)
from sb3_diffrl.sharing.spaces import decode_space, encode_space
from sb3_diffrl.sharing.tensors import Spec, as_header, check_header, spec_of
from sb3_diffrl.sharing.vec_normalize import (
    decode_vec_normalize,
    encode_vec_normalize,
    statistics_specs,
)

FORMAT = 1
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
TRAINING_STATE = "training_state.safetensors"
VEC_NORMALIZE = "vec_normalize.safetensors"
FILES = (CONFIG, WEIGHTS, TRAINING_STATE, VEC_NORMALIZE)

MAX_ACTION_ENTRIES = 2**14
MAX_PARAMETERS = 2**32
MAX_BUFFER_BYTES = 2**34

Model = TypeVar("Model", bound=DiffusionPPO)


@dataclass
class Description:
    """
    A model without its tensors: ``config.json``, checked.

    :param observation_space: of the model
    :param action_space: of the model
    :param policy_class: of the model
    :param policy_kwargs: all of them
    :param attributes: hyperparameters and progress by name of the attribute
    :param optimized: by name of the optimizer, the indices of the parameters whose state is kept;
        None where the optimizers are not
    :param random: what is not an array in the state of the random generators, if kept
    :param vec_normalize: arguments of VecNormalize and which of its statistics stand still, if kept
    """

    observation_space: spaces.Space
    action_space: spaces.Box
    policy_class: type[DiffusionActorCriticPolicy]
    policy_kwargs: dict[str, Any]
    attributes: dict[str, Any]
    optimized: dict[str, list[int]] | None
    random: dict[str, Any] | None
    vec_normalize: dict[str, Any] | None

    def outline(self) -> DiffusionActorCriticPolicy:
        """
        :return: the policy without memory for its tensors
        :raises ValueError: where class and arguments do not fit, or it would be too large
        """
        try:
            with th.device("meta"), preserved_random_state():
                policy = self.policy_class(
                    self.observation_space, self.action_space, lambda _: 0.0, **self.policy_kwargs
                )
        except Exception as error:
            raise ValueError(f"policy: cannot be built from these arguments: {error}") from error
        n_parameters = sum(tensor.numel() for tensor in unique_tensors(policy).values())
        if n_parameters > MAX_PARAMETERS:
            raise ValueError(f"policy: {n_parameters} parameters, at most {MAX_PARAMETERS} allowed")
        self._check_buffer(policy)
        return policy

    def _check_buffer(self, policy: DiffusionActorCriticPolicy) -> None:
        """The rollout buffer is built with the model."""
        steps = policy.chain_steps
        entry = 4 * ((2 * steps + 1) * policy.action_dim + steps + 6)
        entry += _n_bytes(self.observation_space)
        size = entry * self.attributes["n_steps"] * self.attributes["n_envs"]
        if size > MAX_BUFFER_BYTES:
            raise ValueError(
                f"hyperparameters: n_steps={self.attributes['n_steps']} decisions of "
                f"n_envs={self.attributes['n_envs']} envs would take {size / 2**30:.0f} GiB, at "
                f"most {MAX_BUFFER_BYTES / 2**30:.0f} allowed"
            )

    def tensors(self) -> dict[str, dict[str, Spec]]:
        """:return: by file the shapes and dtypes of the tensors that belong to this model"""
        policy = self.outline()
        files = {WEIGHTS: {name: spec_of(each) for name, each in unique_tensors(policy).items()}}
        state: dict[str, Spec] = {}
        if self.optimized is not None:
            for name, optimizer in optimizers(policy).items():
                optimized = parameters(optimizer)
                layout = optimizer_layout(optimizer)
                for index in self.optimized[name]:
                    if index >= len(optimized):
                        raise ValueError(
                            f"optimizer: {name} has {len(optimized)} parameters, "
                            f"there is no number {index}"
                        )
                    shape = tuple(optimized[index].shape)
                    for part, (is_scalar, dtype) in layout.items():
                        state[f"{name}.{index}.{part}"] = (() if is_scalar else shape), dtype
        if self.random is not None:
            state |= {
                "random.python": ((625,), th.int64),
                "random.numpy": ((624,), th.int64),
                "random.torch": spec_of(th.get_rng_state()),
            }
            state |= {f"random.cuda.{i}": ((16,), th.uint8) for i in range(self.random["cuda"])}
        if self.optimized is not None or self.random is not None:
            files[TRAINING_STATE] = state
        if self.vec_normalize is not None:
            files[VEC_NORMALIZE] = statistics_specs(self.observation_space, self.vec_normalize)
        return files


def _n_bytes(space: spaces.Space) -> int:
    if isinstance(space, spaces.Dict):
        return sum(map(_n_bytes, space.spaces.values()))
    return math.prod(space.shape or ()) * np.dtype(space.dtype or np.int64).itemsize


def optimizer_layout(optimizer: th.optim.Optimizer) -> dict[str, tuple[bool, th.dtype]]:
    """
    Found out by one step on a parameter of two entries.

    :param optimizer: with its arguments, on any device
    :return: by name of the entries that it keeps per parameter, whether the entry is a scalar, and
        its dtype
    :raises ValueError: where it cannot step with these arguments
    """
    parameter = nn.Parameter(th.zeros(2))
    parameter.grad = th.zeros(2)
    optimizer_class: Any = type(optimizer)
    known = inspect.signature(optimizer_class).parameters
    given = {name: value for name, value in optimizer.defaults.items() if name in known}
    probe = optimizer_class([parameter], **{**given, "lr": 0.0})
    try:
        probe.step()
    except Exception as error:
        raise ValueError(f"optimizer: cannot step with these arguments: {error}") from error
    return {
        name: (entry.ndim == 0, entry.dtype)
        for name, entry in probe.state[parameter].items()
        if isinstance(entry, th.Tensor)
    }


# -- writing -----------------------------------------------------------------------------------


def encode_model(
    model: DiffusionPPO, include_optimizer: bool = False
) -> tuple[dict[str, Any], dict[str, dict[str, th.Tensor]]]:
    """
    :param model: built
    :param include_optimizer: whether optimizers and, for a model with a seed, random generators
        are kept, so that training can go on
    :return: the configuration as plain data, and tensors by file and name
    :raises ValueError: naming what cannot be shared safely
    """
    if model.rollout_buffer_class not in (RolloutBuffer, DictRolloutBuffer):
        raise ValueError(
            f"rollout_buffer_class: {short(model.rollout_buffer_class)} cannot be shared safely; "
            "train with Stable-Baselines3's own, or share the model by model.save()"
        )
    if model.rollout_buffer_kwargs:
        raise ValueError("rollout_buffer_kwargs: cannot be shared, expected none")
    training: dict[str, Any] = {**encode_all(PROGRESS, model), "optimizer": None, "random": None}
    state: dict[str, th.Tensor] = {}
    if include_optimizer:
        training["optimizer"] = {}
        for name, optimizer in optimizers(model.policy).items():
            kept = optimizer.state_dict()["state"]
            training["optimizer"][name] = sorted(kept)
            for index, parts in kept.items():
                for part, entry in parts.items():
                    if isinstance(entry, th.Tensor):
                        state[f"{name}.{index}.{part}"] = entry
        if model.seed is not None:
            training["random"], arrays = _encode_random(get_random_state())
            state |= arrays
    config: dict[str, Any] = {
        "format": FORMAT,
        "library_name": "sb3-diffrl",
        "algorithm": "DiffusionPPO",
        "versions": {
            "sb3-diffrl": version("sb3-diffrl"),
            "stable-baselines3": stable_baselines3.__version__,
            "torch": th.__version__.split("+")[0],
        },
    }
    for name in ("observation_space", "action_space"):
        with at(name):
            config[name] = encode_space(getattr(model, name))
    config["policy"] = encode_policy(model.policy)
    config["hyperparameters"] = encode_all(HYPERPARAMETERS, model)
    config["training"] = training
    with at("env_wrappers"):
        config["env_wrappers"] = check_env_wrappers(model.env_wrappers)
    config["vec_normalize"] = None
    tensors = {WEIGHTS: unique_tensors(model.policy)}
    if include_optimizer:
        tensors[TRAINING_STATE] = state
    env = model.get_vec_normalize_env()
    if env is not None:
        config["vec_normalize"], tensors[VEC_NORMALIZE] = encode_vec_normalize(
            env, model.observation_space
        )
    tensors = {
        file: {name: tensor.detach().cpu().clone() for name, tensor in named.items()}
        for file, named in tensors.items()
    }
    _check_complete(config, tensors)
    return config, tensors


def _check_complete(config: dict[str, Any], tensors: dict[str, dict[str, th.Tensor]]) -> None:
    """A model that could not be loaded again is not written."""
    expected = decode_config(json.loads(json.dumps(config, allow_nan=False))).tensors()
    for file in expected.keys() | tensors.keys():
        with at(file):
            found = {name: spec_of(tensor) for name, tensor in tensors.get(file, {}).items()}
            check_header(expected.get(file, {}), {n: as_header(s) for n, s in found.items()})


def _encode_random(state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, th.Tensor]]:
    _, words, gauss = state["python"]
    kind, numpy_words, position, has_gauss, numpy_gauss = state["numpy"]
    if kind != "MT19937":
        raise ValueError(f"random state: expected NumPy's MT19937, got {kind}")
    numbers = {
        "python_gauss": gauss,
        "numpy_position": int(position),
        "numpy_has_gauss": int(has_gauss),
        "numpy_gauss": float(numpy_gauss),
        "cuda": len(state["cuda"]),
    }
    arrays = {
        "random.python": th.tensor(words),
        "random.numpy": th.tensor(numpy_words.astype(np.int64)),
        "random.torch": state["torch"],
        **{f"random.cuda.{i}": each for i, each in enumerate(state["cuda"])},
    }
    return numbers, arrays


def _decode_random(value: Any) -> dict[str, Any]:
    names = ("python_gauss", "numpy_position", "numpy_has_gauss", "numpy_gauss", "cuda")
    gauss, position, has_gauss, numpy_gauss, cuda = entries(value, *names)
    return {
        "python_gauss": optional(real())(gauss),
        "numpy_position": whole(0, 624)(position),
        "numpy_has_gauss": whole(0, 1)(has_gauss),
        "numpy_gauss": real()(numpy_gauss),
        "cuda": whole(0, 64)(cuda),
    }


def _random_state(numbers: dict[str, Any], tensors: Mapping[str, th.Tensor]) -> dict[str, Any]:
    for name in ("random.python", "random.numpy"):
        if not ((tensors[name] >= 0) & (tensors[name] < 2**32)).all():
            raise ValueError(f"{name}: expected words of 32 bits")
    numpy_state = (
        *("MT19937", tensors["random.numpy"].numpy().astype(np.uint32)),
        *(numbers[name] for name in ("numpy_position", "numpy_has_gauss", "numpy_gauss")),
    )
    state: dict[str, Any] = {
        "python": (3, tuple(tensors["random.python"].tolist()), numbers["python_gauss"]),
        "numpy": numpy_state,
        "torch": tensors["random.torch"],
        "cuda": [tensors[f"random.cuda.{i}"] for i in range(numbers["cuda"])],
    }
    try:  # on generators of our own, the global ones only if all of it is sound
        random.Random().setstate(state["python"])
        th.Generator().set_state(state["torch"])
    except (RuntimeError, TypeError, OverflowError) as error:
        raise ValueError(f"not the state of a random generator: {error}") from error
    return state


# -- reading -----------------------------------------------------------------------------------


def decode_config(config: Any) -> Description:
    """
    :param config: what :func:`encode_model` made, from a file that may come from anyone
    :return: the description, every entry checked
    :raises ValueError: naming the entry, what was expected and what was found
    """
    written = config.get("format") if isinstance(config, dict) else None
    if written != FORMAT:
        raise ValueError(
            f"expected format {FORMAT} of sb3-diffrl, got {short(written)}. A model that the RL "
            "Zoo or model.save() wrote is loaded by DiffusionPPO.load; a newer format needs a "
            "newer sb3-diffrl."
        )
    _, _, algorithm, _, *parts = entries(
        {"env_wrappers": [], **config},  # which older files lack
        *("format", "library_name", "algorithm", "versions", "observation_space", "action_space"),
        *("policy", "hyperparameters", "training", "vec_normalize", "env_wrappers"),
    )
    with at("algorithm"):
        one_of(("DiffusionPPO",))(algorithm)
    with at("observation_space"):
        observation_space = decode_space(parts[0])
    with at("action_space"):
        action_space = decode_space(parts[1])
        check_action_space(action_space)
        assert isinstance(action_space, spaces.Box)
        if math.prod(action_space.shape) > MAX_ACTION_ENTRIES:
            raise ValueError(f"expected at most {MAX_ACTION_ENTRIES} entries")
    with at("policy"):
        policy_class, policy_kwargs = decode_policy(parts[2])
    with at("hyperparameters"):
        attributes = decode_all(HYPERPARAMETERS, parts[3])
    with at("training"):
        *progress, optimized, numbers = entries(parts[4], *PROGRESS, "optimizer", "random")
        attributes |= decode_all(PROGRESS, dict(zip(PROGRESS, progress, strict=True)))
        if optimized is not None:
            with at("optimizer"):
                names = ("optimizer", "critic_optimizer")
                indices = list_of(whole(0, 10**6), 10**5)
                optimized = {
                    name: indices(each)
                    for name, each in zip(names, entries(optimized, *names), strict=True)
                }
        if numbers is not None:
            with at("random"):
                numbers = _decode_random(numbers)
    vec_normalize = None
    if parts[5] is not None:
        with at("vec_normalize"):
            vec_normalize = decode_vec_normalize(parts[5], observation_space)
    with at("env_wrappers"):
        attributes["env_wrappers"] = check_env_wrappers(parts[6])
    for name in ("ep_info_buffer", "ep_success_buffer"):
        if attributes[name] is not None:
            attributes[name] = deque(attributes[name], attributes["_stats_window_size"])
    return Description(
        observation_space=observation_space,
        action_space=action_space,
        policy_class=policy_class,
        policy_kwargs=policy_kwargs,
        attributes=attributes,
        optimized=optimized,
        random=numbers,
        vec_normalize=vec_normalize,
    )


def build_model(
    cls: type[Model],
    description: Description,
    tensors: Mapping[str, Mapping[str, th.Tensor]],
    env: VecEnv | None,
    device: th.device | str,
    changes: Mapping[str, Any],
) -> Model:
    """
    :param cls: what to build
    :param description: checked
    :param tensors: by file and name, checked
    :param env: to train in, wrapped as the model needs it
    :param device: of the policy
    :param changes: attributes to set otherwise than described
    :return: the model
    """
    state = tensors.get(TRAINING_STATE, {})
    random_state = None
    if description.random is not None:
        with at(TRAINING_STATE):
            random_state = _random_state(description.random, state)
    model = cls(description.policy_class, env, device=device, _init_setup_model=False)  # type: ignore[arg-type]  # without an env
    attributes = {**description.attributes, **changes}
    if env is not None:
        attributes["n_envs"] = env.num_envs
    model.__dict__.update(
        attributes,
        observation_space=description.observation_space,
        action_space=description.action_space,
        policy_kwargs=description.policy_kwargs,
    )
    model._record_wrappers()
    model._setup_model()
    with th.no_grad():
        for name, tensor in unique_tensors(model.policy).items():
            tensor.copy_(tensors[WEIGHTS][name])
    if description.optimized is not None:
        for name, optimizer in optimizers(model.policy).items():
            layout = optimizer_layout(optimizer)
            kept = {
                index: {part: state[f"{name}.{index}.{part}"] for part in layout}
                for index in description.optimized[name]
            }
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": kept, "param_groups": groups})
    if random_state is not None and "seed" not in changes:
        set_random_state(random_state)
    return model
