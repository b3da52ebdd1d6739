"""LeRobot's ``DiffusionPolicy`` of states, read from the folder that ``save_pretrained`` writes."""

import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.type_aliases import GymEnv
from torch import nn

from sb3_diffrl.diffusion import UnetDenoiser
from sb3_diffrl.diffusion_ppo import DiffusionPPO
from sb3_diffrl.importing.source import SourcePolicy, Statistics, build
from sb3_diffrl.sharing.checks import (
    MAX_LAYERS,
    MAX_WIDTH,
    Check,
    at,
    flag,
    list_of,
    one_of,
    optional,
    parse_json,
    real,
    whole,
)

# The parts of an observation in the order in which LeRobot concatenates them, with the keys that
# its environments have for them.
PARTS = {
    "observation.state": "agent_pos",
    "observation.environment_state": "environment_state",
}
ACTION = "action"
# What LeRobot adds to the width of a range or to a standard deviation.
EPS = 1e-8
# By mode: the statistics it needs, and what is made of them.
MODES: dict[str, tuple[tuple[str, str], Callable[..., Statistics]]] = {
    "MEAN_STD": (("mean", "std"), Statistics.of_moments),
    "MIN_MAX": (("min", "max"), Statistics.of_range),
    "QUANTILES": (("q01", "q99"), Statistics.of_range),
    "QUANTILE10": (("q10", "q90"), Statistics.of_range),
}
NOISE_SCHEDULES = {"squaredcos_cap_v2": "squared_cosine_capped"}
# DDPM is DDIM with eta = 1 and the noise recomputed from the clipped action.
SCHEDULERS: dict[str, dict[str, Any]] = {
    "DDPM": {"eta": 1.0, "use_clipped_model_output": True},
    "DDIM": {"eta": 0.0, "use_clipped_model_output": False},
}
_width, _count = whole(1, MAX_WIDTH), whole(1, 10_000)
CONFIG: dict[str, Check] = {
    "type": one_of(("diffusion",)),
    "n_obs_steps": whole(1, 1_000),
    "horizon": _count,
    "n_action_steps": _count,
    "down_dims": list_of(_width, MAX_LAYERS),
    "kernel_size": _width,
    # LeRobot normalises the last block in 8 groups whatever this says.
    "n_groups": whole(8, 8),
    "diffusion_step_embed_dim": _width,
    "use_film_scale_modulation": flag,
    "noise_scheduler_type": one_of(SCHEDULERS),
    "num_train_timesteps": _count,
    "beta_schedule": one_of(NOISE_SCHEDULES),
    "prediction_type": one_of(("epsilon", "sample")),
    "clip_sample": flag,
    "clip_sample_range": real(1e-6, 1e6),
    "num_inference_steps": optional(_count),
}


def load_lerobot(
    path: str | pathlib.Path,
    env: GymEnv | str | None = None,
    keys: Mapping[str, str] | None = None,
    **kwargs: Any,
) -> DiffusionPPO:
    """
    A LeRobot ``DiffusionPolicy`` (Chi et al. 2023) as a model that can act, be fine-tuned, saved
    and shared, or serve as ``prior=``: the same actions for the same noise. LeRobot itself is not
    needed, and nothing is unpickled.

    The policy predicts ``horizon`` actions from the oldest of its ``n_obs_steps`` observations on
    and executes ``n_action_steps`` of them from the current one on: wrap the env in
    ``ActionChunkWrapper(ObservationHistoryWrapper(env, n_obs_steps), horizon, n_action_steps,
    start=n_obs_steps - 1)``. Observations are the state followed by the environment state, or a
    Dict of them.

    :param path: folder with ``config.json``, ``model.safetensors`` and, from LeRobot 0.4 on,
        ``policy_preprocessor.json`` and ``policy_postprocessor.json`` with the files they name
    :param env: to train in; without it the model's spaces are the policy's own
    :param keys: by LeRobot's name the key of a Dict observation, by default ``agent_pos`` for
        ``observation.state`` and ``environment_state`` for ``observation.environment_state``
    :param kwargs: of :class:`~sb3_diffrl.DiffusionPPO`; ``policy_kwargs`` add to the policy's own
    :return: the model
    :raises ValueError: for a policy of another kind or with cameras, a damaged file, or an env that
        does not fit
    """
    return build(read_lerobot(pathlib.Path(path)), env, {**PARTS, **(keys or {})}, **kwargs)


def read_lerobot(folder: pathlib.Path) -> SourcePolicy:
    """
    :param folder: see :func:`load_lerobot`
    :return: what is in it
    :raises ValueError: naming the file and the entry that is wrong
    """
    config = _read_json(folder / "config.json")
    with at(str(folder / "config.json")):
        inputs = _shapes(config, "input_features")
        outputs = _shapes(config, "output_features")
        for name in sorted(inputs.keys() - PARTS.keys()):
            raise ValueError(
                f"the policy sees {name!r}; only policies of {' and '.join(PARTS)} can be brought "
                "here. Train one without cameras, or pre-train on the data set itself."
            )
        if "observation.state" not in inputs or outputs.keys() != {ACTION}:
            raise ValueError(
                "expected the input 'observation.state' and the output 'action', got "
                f"{sorted(inputs)} and {sorted(outputs)}"
            )
        read = {}
        for name, check in CONFIG.items():
            with at(name):
                if name not in config:
                    raise ValueError("missing; is this the config of a DiffusionPolicy?")
                read[name] = check(config[name])
    weights = _read_tensors(folder / "model.safetensors")
    sizes = {name: inputs[name] for name in PARTS if name in inputs} | outputs
    statistics = _read_statistics(folder, config, weights, sizes)
    return SourcePolicy(
        origin=f"LeRobot's policy in {folder}",
        observations={name: statistics[name] for name in sizes if name != ACTION},
        n_observations=read["n_obs_steps"],
        horizon=read["horizon"],
        start=read["n_obs_steps"] - 1,
        n_executed=read["n_action_steps"],
        actions=statistics[ACTION],
        policy_kwargs=_policy_kwargs(read),
        denoiser=_rename(weights, read["diffusion_step_embed_dim"]),
        of_features="film_features.weight",
    )


def _policy_kwargs(config: Mapping[str, Any]) -> dict[str, Any]:
    noise_levels = config["num_train_timesteps"]
    return {
        "net_arch": {"pi": config["down_dims"], "vf": [256, 256, 256]},
        "activation_fn": nn.Mish,
        "noise_schedule": NOISE_SCHEDULES[config["beta_schedule"]],
        "noise_levels": noise_levels,
        "denoising_steps": config["num_inference_steps"] or noise_levels,
        "prediction_type": config["prediction_type"],
        "clip_sample": config["clip_sample_range"] if config["clip_sample"] else None,
        "timestep_spacing": "leading",
        **SCHEDULERS[config["noise_scheduler_type"]],
        "denoiser_class": UnetDenoiser,
        "denoiser_kwargs": {
            "horizon": config["horizon"],
            "kernel_size": config["kernel_size"],
            "n_groups": config["n_groups"],
            "use_film_scale_modulation": config["use_film_scale_modulation"],
            "level_embed_dim": config["diffusion_step_embed_dim"],
        },
    }


# -- files -------------------------------------------------------------------------------------


def _read_json(file: pathlib.Path) -> dict[str, Any]:
    if not file.is_file():
        raise ValueError(
            f"{file} is missing: expected the folder that LeRobot's save_pretrained writes, such "
            "as outputs/train/.../checkpoints/last/pretrained_model."
        )
    with at(str(file)):
        value = parse_json(file.read_bytes())
        if not isinstance(value, dict):
            raise ValueError("expected a mapping")
    return value


def _read_tensors(file: pathlib.Path) -> dict[str, th.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not file.is_file():
        raise ValueError(f"{file} is missing: the folder is not complete.")
    try:
        tensors = load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file}: not a sound safetensors file: {error}") from error
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{file}: {name} is not finite")
    return tensors


def _shapes(config: Mapping[str, Any], name: str) -> dict[str, int]:
    """Number of entries of each feature; those with more dimensions count as unknown parts."""
    with at(name):
        features = config.get(name)
        if not isinstance(features, dict):
            raise ValueError(
                "expected a mapping of features. A config of LeRobot before 0.2 is brought up to "
                "date by its own migration script."
            )
        sizes = {}
        for key, feature in features.items():
            with at(key):
                shape = feature.get("shape") if isinstance(feature, dict) else None
                sizes[key] = int(np.prod(list_of(_count, 4)(shape)))
        return sizes


# -- normalisation -----------------------------------------------------------------------------


class Normalization(NamedTuple):
    """
    :param modes: by type of the feature the name of its mode
    :param stats: by feature and name of the statistic
    :param slacks: by mode what is added to the divisor
    """

    modes: Mapping[str, Any]
    stats: Mapping[str, Mapping[str, th.Tensor]]
    slacks: Mapping[str, float]

    def statistics(self, name: str, kind: str, size: int) -> Statistics:
        """:return: of a feature, given its type and number of entries"""
        mode = self.modes.get(kind, "IDENTITY")
        if mode == "IDENTITY":
            return Statistics.identity(size)
        with at(f"normalisation of {name}"):
            needed, make = MODES[one_of(MODES)(mode)]
            values = []
            for statistic in needed:
                tensor = self.stats.get(name, {}).get(statistic)
                if tensor is None or tensor.numel() != size:
                    raise ValueError(
                        f"mode {mode} needs {statistic!r} with {size} entries, found "
                        f"{None if tensor is None else tuple(tensor.shape)}"
                    )
                values.append(tensor.double().flatten().numpy())
            return make(*values, self.slacks.get(mode, 0.0))


def _read_statistics(
    folder: pathlib.Path,
    config: Mapping[str, Any],
    weights: Mapping[str, th.Tensor],
    sizes: Mapping[str, int],
) -> dict[str, Statistics]:
    """By name of the feature; from the processors' files, or from among the weights."""
    if (folder / "policy_preprocessor.json").is_file():
        inputs = _of_processor(folder / "policy_preprocessor.json", "normalizer_processor")
        outputs = _of_processor(folder / "policy_postprocessor.json", "unnormalizer_processor")
    else:
        inputs, outputs = (
            _of_weights(config, weights, owner)
            for owner in ("normalize_inputs", "unnormalize_outputs")
        )
    # Actions are multiplied by the divisor as it is.
    outputs = outputs._replace(slacks={})
    features = {**config["input_features"], **config["output_features"]}
    return {
        name: (outputs if name == ACTION else inputs).statistics(
            name, str(features[name].get("type")), size
        )
        for name, size in sizes.items()
    }


def _of_processor(file: pathlib.Path, step_name: str) -> Normalization:
    """From a step of a pipeline, as LeRobot 0.4 and newer have it."""
    pipeline = _read_json(file)
    with at(str(file)):
        steps = pipeline.get("steps")
        if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
            raise ValueError("expected a list of steps")
        if any(step.get("config", {}).get("rename_map") for step in steps):
            raise ValueError("the pipeline renames observations, which cannot be brought here")
        chosen = [step for step in steps if step.get("registry_name") == step_name]
        if len(chosen) != 1:
            raise ValueError(f"expected one step {step_name!r}, found {len(chosen)}")
        state_file, settings = chosen[0].get("state_file"), chosen[0].get("config", {})
        if not isinstance(state_file, str) or pathlib.Path(state_file).name != state_file:
            raise ValueError(f"expected the name of a file of statistics, got {state_file!r}")
    stats: dict[str, dict[str, th.Tensor]] = {}
    for name, tensor in _read_tensors(file.parent / state_file).items():
        feature, _, statistic = name.rpartition(".")
        stats.setdefault(feature, {})[statistic] = tensor
    eps = real(0, 1)(settings.get("eps", EPS))
    return Normalization(settings.get("norm_map", {}), stats, {"MEAN_STD": eps})


def _of_weights(
    config: Mapping[str, Any], weights: Mapping[str, th.Tensor], owner: str
) -> Normalization:
    """From among the weights, as LeRobot before 0.4 has it."""
    stats: dict[str, dict[str, th.Tensor]] = {}
    for name in (*PARTS, ACTION):
        prefix = f"{owner}.buffer_{name.replace('.', '_')}."
        stats[name] = {
            key.removeprefix(prefix): tensor
            for key, tensor in weights.items()
            if key.startswith(prefix)
        }
    modes = config.get("normalization_mapping") or {}
    return Normalization(modes, stats, dict.fromkeys(MODES, EPS))


# -- weights -----------------------------------------------------------------------------------

RENAMED = (
    (r"diffusion_step_encoder\.1", "level_encoder.0"),
    (r"diffusion_step_encoder\.3", "level_encoder.2"),
    (r"down_modules\.(\d+)\.2", r"downsample.\1"),
    (r"up_modules\.(\d+)\.2", r"upsample.\1"),
    (r"down_modules", "encoder"),
    (r"up_modules", "decoder"),
    (r"mid_modules", "middle"),
    (r"conv1\.block", "first"),
    (r"conv2\.block", "second"),
    (r"residual_conv", "skip"),
    (r"final_conv\.0\.block", "output.0"),
    (r"final_conv", "output"),
)
FILM = re.compile(r"(down|mid|up)_modules\.(\d+)\.(?:(\d)\.)?cond_encoder\.1\.(weight|bias)")
FILM_ORDER = ("down", "mid", "up")


def _rename(weights: Mapping[str, th.Tensor], level_embed_dim: int) -> dict[str, th.Tensor]:
    """
    LeRobot's weights of the U-Net by our names. Its blocks have a layer each for level and
    observation; ours are the parts of two for all blocks.
    """
    prefix = "diffusion.unet."
    renamed: dict[str, th.Tensor] = {}
    films: dict[str, dict[tuple[int, int, int], th.Tensor]] = {"weight": {}, "bias": {}}
    for full_name, tensor in weights.items():
        if not full_name.startswith(prefix):
            continue
        name = full_name.removeprefix(prefix)
        film = FILM.fullmatch(name)
        if film is not None:
            side, i, j, kind = film.groups()
            films[kind][FILM_ORDER.index(side), int(i), int(j or 0)] = tensor
            continue
        for pattern, ours in RENAMED:
            name = re.sub(pattern, ours, name)
        renamed[name] = tensor.float()
    if not films["weight"]:
        raise ValueError("model.safetensors holds no U-Net of LeRobot's (diffusion.unet.*).")
    weight, bias = (
        th.cat([films[kind][place] for place in sorted(films[kind])]).float() for kind in films
    )
    of_levels, of_features = weight.split(
        [level_embed_dim, weight.shape[1] - level_embed_dim], dim=1
    )
    return {
        **renamed,
        "film_level.weight": of_levels.contiguous(),
        "film_level.bias": bias,
        "film_features.weight": of_features.contiguous(),
    }
