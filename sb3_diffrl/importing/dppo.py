"""DPPO's diffusion policies of states, read from its checkpoints ``state_*.pt``."""

import logging
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.type_aliases import GymEnv
from torch import nn

from sb3_diffrl.diffusion import DppoMlpDenoiser
from sb3_diffrl.diffusion_ppo import DiffusionPPO
from sb3_diffrl.importing.source import SourcePolicy, Statistics, build
from sb3_diffrl.sharing.checks import at, flag, one_of, optional, real, whole

log = logging.getLogger(__name__)

Weights = dict[str, th.Tensor]

# By name: what a checkpoint calls the weights, first the state dict, then their prefix.
WEIGHTS = {
    "ema": ("ema", "network."),
    "model": ("model", "network."),
    "finetuned": ("model", "actor_ft."),
    "pretrained": ("model", "actor."),
}
ACTIVATIONS: dict[str, type[nn.Module]] = {
    each.__name__: each
    for each in (nn.ReLU, nn.ELU, nn.GELU, nn.Tanh, nn.Mish, nn.Identity, nn.Softplus)
}
NORMALIZATION = ("obs_min", "obs_max", "action_min", "action_max")
# What DPPO adds to the width of an observation's range.
SLACK = 1e-6


def load_dppo(
    path: str | pathlib.Path,
    env: GymEnv | str | None = None,
    *,
    config: str | pathlib.Path | Mapping[str, Any],
    normalization: str | pathlib.Path | Mapping[str, Any] | None = None,
    weights: str | None = None,
    **kwargs: Any,
) -> DiffusionPPO:
    """
    A diffusion policy of DPPO (Ren et al. 2024) as a model that can act, be fine-tuned, saved and
    shared, or serve as ``prior=``: the same actions for the same noise as its evaluation gives.

    Of a fine-tuned checkpoint the fine-tuned network takes the last ``ft_denoising_steps`` steps
    and the pre-trained one, which becomes the frozen prior, those before, as in DPPO. Train such a
    model directly; where two networks act, it cannot be the prior of another. Which weights were
    taken is logged (``logging``, level INFO).

    The env: ``ActionChunkWrapper(ObservationHistoryWrapper(env, cond_steps), horizon_steps,
    act_steps)``, without the history where ``cond_steps`` is 1. It takes and gives its own units.

    :param path: checkpoint; read without unpickling objects
    :param env: to train in; without it the model's spaces are the policy's own
    :param config: of the run: the file ``.hydra/config.yaml`` that it wrote, or a mapping of its
        entries: ``horizon_steps``, ``denoising_steps``, the network's ``activation_type``, and
        where they matter ``cond_steps``, ``act_steps``, ``ft_denoising_steps``,
        ``predict_epsilon``, ``denoised_clip_value``, ``use_ddim`` and ``ddim_steps``, at the top or
        in ``model``
    :param normalization: its ``normalization.npz``, or a mapping of ``obs_min``, ``obs_max``,
        ``action_min`` and ``action_max``; None where DPPO's env was not normalised
    :param weights: ``"ema"`` or ``"model"`` of a pre-training checkpoint, ``"finetuned"`` or
        ``"pretrained"`` of a fine-tuning one; by default the averaged and the fine-tuned ones
    :param kwargs: of :class:`~sb3_diffrl.DiffusionPPO`; ``policy_kwargs`` add to the policy's own
    :return: the model
    :raises ValueError: for a policy of another kind or with cameras, a damaged file, or an env that
        does not fit
    """
    source = read_dppo(pathlib.Path(path), config, normalization, weights)
    return build(source, env, **kwargs)


def read_dppo(
    file: pathlib.Path,
    config: str | pathlib.Path | Mapping[str, Any],
    normalization: str | pathlib.Path | Mapping[str, Any] | None,
    weights: str | None,
) -> SourcePolicy:
    """
    :param file: see :func:`load_dppo` for this and the others
    :param config: of the run
    :param normalization: of the env
    :param weights: which to take
    :return: what is in them
    :raises ValueError: naming the file and the entry that is wrong
    """
    settings = Settings(config)
    checkpoint = _read_checkpoint(file)
    with at(str(file)):
        chosen = _choose(checkpoint, weights)
        network = _weights(checkpoint, chosen)
        denoiser, arguments = _rename(network)
        prior = finetuned_steps = None
        if chosen == "finetuned":
            finetuned_steps = settings.get("ft_denoising_steps", optional(whole(0, 10_000)))
            if not finetuned_steps:
                raise ValueError(
                    "the checkpoint holds fine-tuned weights, but the config's ft_denoising_steps "
                    f"is {finetuned_steps}, with which DPPO runs the pre-trained ones. Give the "
                    'number of the fine-tuning run, or ask for weights="pretrained".'
                )
            prior, _ = _rename(_weights(checkpoint, "pretrained"))
    log.info("%s: took the weights %r of %s", file, chosen, sorted(checkpoint))

    horizon = settings.get("horizon_steps", whole(1, 10_000))
    n_observations = settings.get("cond_steps", whole(1, 1_000), 1)
    n_actions, rest = divmod(arguments["action_dim"], horizon)
    n_entries, rest_of_entries = divmod(arguments["features_dim"], n_observations)
    if rest or rest_of_entries:
        raise ValueError(
            f"The config does not fit {file}: its network has {arguments['action_dim']} action "
            f"entries and {arguments['features_dim']} observation entries, which are no multiples "
            f"of horizon_steps={horizon} and cond_steps={n_observations}."
        )
    observations, actions = _read_normalization(normalization, n_entries, n_actions)
    policy_kwargs = _policy_kwargs(settings, arguments["kwargs"])
    if finetuned_steps is not None:
        policy_kwargs["finetuned_steps"] = finetuned_steps
    return SourcePolicy(
        origin=f"DPPO's policy in {file}",
        observations={"state": observations},
        n_observations=n_observations,
        horizon=horizon,
        start=0,
        n_executed=settings.get("act_steps", whole(1, horizon), horizon),
        actions=actions,
        policy_kwargs=policy_kwargs,
        denoiser=denoiser,
        of_features="features_net.0.weight"
        if arguments["kwargs"]["features_arch"]
        else "features_layer.weight",
        prior_denoiser=prior,
    )


class Settings:
    """
    The entries of a run's config, at the top or in ``model`` or in its network.

    :param config: mapping, or path of a YAML file
    :raises ValueError: for anything else
    """

    def __init__(self, config: str | pathlib.Path | Mapping[str, Any]):
        if not isinstance(config, Mapping):
            import yaml

            file = pathlib.Path(config)
            with at(str(file)):
                try:
                    config = yaml.safe_load(file.read_text())
                except (OSError, yaml.YAMLError) as error:
                    raise ValueError(f"cannot be read: {error}") from error
                if not isinstance(config, Mapping):
                    raise ValueError("expected a mapping")
        model = config.get("model") or {}
        network = model.get("actor") or model.get("network") or {}
        self.entries = {**network, **model, **config}

    def get(self, name: str, check: Any, default: Any = None) -> Any:
        """
        :param name: of the entry
        :param check: of its value
        :param default: where there is none; None if there must be one
        :return: the value
        :raises ValueError: naming the entry
        """
        value = self.entries.get(name, default)
        with at(f"config: {name}"):
            reference = re.fullmatch(r"\$\{(\w+)\}", value) if isinstance(value, str) else None
            if reference is not None:
                value = self.entries.get(reference[1])
            return check(value)


def _policy_kwargs(settings: Settings, network: dict[str, Any]) -> dict[str, Any]:
    noise_levels = settings.get("denoising_steps", whole(1, 10_000))
    use_ddim = bool(settings.get("use_ddim", optional(flag)))
    steps = settings.get("ddim_steps", whole(1, noise_levels)) if use_ddim else noise_levels
    predicts_noise = settings.get("predict_epsilon", flag, True)
    if use_ddim and settings.entries.get("eps_clip_value") is not None:
        raise ValueError("config: eps_clip_value cannot be brought here; expected none")
    settings.get("out_activation_type", one_of(("Identity",)), "Identity")
    activation = settings.get("activation_type", one_of(ACTIVATIONS), "Mish")
    widths = network.pop("net_arch")
    return {
        "net_arch": {"pi": widths, "vf": [256, 256, 256]},
        "activation_fn": ACTIVATIONS[activation],
        "noise_schedule": "squared_cosine_capped",
        "noise_levels": noise_levels,
        "denoising_steps": steps,
        "eta": 0.0 if use_ddim else 1.0,
        "prediction_type": "epsilon" if predicts_noise else "sample",
        "clip_sample": settings.get("denoised_clip_value", optional(real(1e-6, 1e6)), 1.0),
        "timestep_spacing": "leading",
        "denoiser_class": DppoMlpDenoiser,
        "denoiser_kwargs": network,
    }


# -- files -------------------------------------------------------------------------------------


def _read_checkpoint(file: pathlib.Path) -> dict[str, Weights]:
    """The state dicts of a checkpoint by name."""
    with at(str(file)):
        try:
            checkpoint = th.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch has no one class for damaged and unsafe files
            raise ValueError(f"cannot be read as a checkpoint of tensors: {error}") from error
        found = {
            name: value
            for name, value in (checkpoint.items() if isinstance(checkpoint, dict) else ())
            if name in ("ema", "model") and isinstance(value, dict)
        }
        if not found:
            raise ValueError("expected the entries 'model' and, after pre-training, 'ema'")
    return found


def _choose(checkpoint: Mapping[str, Weights], wanted: str | None) -> str:
    """The name of the weights to take."""
    there = [name for name in WEIGHTS if _weights(checkpoint, name)]
    if "finetuned" in there:
        there = ["finetuned", "pretrained"]  # `network.*` are the pre-trained ones once more
    if not there:
        raise ValueError("found no weights of a network (network.*, actor.* or actor_ft.*)")
    return there[0] if wanted is None else one_of(there)(wanted)


def _weights(checkpoint: Mapping[str, Weights], name: str) -> Weights:
    owner, prefix = WEIGHTS[name]
    return {
        key.removeprefix(prefix): tensor
        for key, tensor in checkpoint.get(owner, {}).items()
        if key.startswith(prefix)
    }


def _read_normalization(
    normalization: str | pathlib.Path | Mapping[str, Any] | None, n_entries: int, n_actions: int
) -> tuple[Statistics, Statistics]:
    """Statistics of observations and actions."""
    if normalization is None:
        return Statistics.identity(n_entries), Statistics.identity(n_actions)
    place = "normalization"
    if not isinstance(normalization, Mapping):
        place = str(normalization)
        with at(place):
            try:
                with np.load(normalization, allow_pickle=False) as archive:
                    normalization = {name: archive[name] for name in archive.files}
            except (OSError, ValueError) as error:
                raise ValueError(f"cannot be read as an archive of arrays: {error}") from error
    ends: list[np.ndarray] = []
    for name in NORMALIZATION:
        with at(place):
            size = n_entries if name.startswith("obs") else n_actions
            if name not in normalization:
                raise ValueError(f"{name} is missing; expected {', '.join(NORMALIZATION)}")
            end = np.asarray(normalization[name], np.float64).ravel()
            if len(end) != size or not np.isfinite(end).all():
                raise ValueError(
                    f"{name}: expected {size} finite numbers, as the network and the config's "
                    f"horizon_steps and cond_steps have it, got {len(end)}"
                )
            ends.append(end)
    obs_min, obs_max, action_min, action_max = ends
    return (
        Statistics.of_range(obs_min, obs_max, SLACK),
        Statistics.of_range(action_min, action_max),
    )


# -- weights -----------------------------------------------------------------------------------

RENAMED = (
    (r"time_embedding\.1", lambda _: "level_encoder.0"),
    (r"time_embedding\.3", lambda _: "level_encoder.2"),
    (r"cond_mlp\.moduleList\.(\d+)\.linear_1", lambda m: f"features_net.{2 * int(m[1])}"),
    (r"mlp_mean\.layers\.(\d+)\.l([12])", lambda m: _in_block(m, 3 * int(m[2]) - 1)),
    (r"mlp_mean\.layers\.(\d+)\.norm([12])", lambda m: _in_block(m, 3 * int(m[2]) - 3)),
    (r"mlp_mean\.layers\.(\d+)", lambda m: f"trunk.{int(m[1]) - 1}"),
    (r"mlp_mean\.moduleList\.(\d+)\.linear_1", lambda m: f"trunk.{3 * int(m[1]) - 1}"),
    (r"mlp_mean\.moduleList\.(\d+)\.norm_1", lambda m: f"trunk.{3 * int(m[1])}"),
)


def _in_block(match: re.Match[str], layer: int) -> str:
    return f"trunk.{int(match[1]) - 1}.update.{layer}"


def _rename(weights: Weights) -> tuple[Weights, dict[str, Any]]:
    """
    DPPO's weights by our names, whose first layer is cut into three; and what they say of the
    architecture: ``action_dim``, ``features_dim`` and ``kwargs`` of the denoiser.
    """
    residual = "mlp_mean.layers.0.weight" in weights
    first = "mlp_mean.layers.0" if residual else "mlp_mean.moduleList.0.linear_1"
    if f"{first}.weight" not in weights or "time_embedding.3.weight" not in weights:
        raise ValueError(
            f"expected DPPO's DiffusionMLP, found the weights {sorted(weights)[:3]} and so on. Its "
            "U-Nets and policies with cameras cannot be brought here."
        )
    embedded = weights["time_embedding.3.weight"].shape[0]
    by_depth = {
        int(match[1]): tensor
        for key, tensor in weights.items()
        if (match := re.fullmatch(r"mlp_mean\.(?:layers|moduleList)\.(\d+).*weight", key))
        and tensor.ndim == 2
    }
    action_dim = by_depth[max(by_depth)].shape[0]
    width, n_inputs = weights[f"{first}.weight"].shape
    encoded = n_inputs - embedded - action_dim
    of_features = [
        tensor
        for key, tensor in weights.items()
        if re.fullmatch(r"cond_mlp.*linear_1\.weight", key)
    ]
    depth = max(by_depth)
    net_arch = (
        [width] * (2 * (depth - 1) + 1)
        if residual
        else [by_depth[i].shape[0] for i in range(depth)]
    )
    renamed: Weights = {}
    for key, tensor in weights.items():
        if key.startswith(f"{first}."):
            continue
        for pattern, ours in RENAMED:
            new, count = re.subn(pattern, ours, key)
            if count:
                renamed[new] = tensor.float()
                break
        else:
            renamed[key] = tensor
    action, level, features = (
        weights[f"{first}.weight"].float().split([action_dim, embedded, encoded], dim=1)
    )
    renamed |= {
        "action_layer.weight": action.contiguous(),
        "action_layer.bias": weights[f"{first}.bias"].float(),
        "level_layer.weight": level.contiguous(),
        "features_layer.weight": features.contiguous(),
    }
    return renamed, {
        "action_dim": action_dim,
        "features_dim": of_features[0].shape[1] if of_features else encoded,
        "kwargs": {
            "net_arch": net_arch,
            "residual": residual,
            "layer_norm": any(".norm" in key for key in weights),
            "level_embed_dim": embedded,
            "features_arch": [tensor.shape[0] for tensor in of_features],
        },
    }
