"""The README.md of a shared model, with its pictures and its metadata for the Hub."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from sb3_diffrl.diffusion_ppo import DiffusionPPO
from sb3_diffrl.evaluation import Evaluation
from sb3_diffrl.plots import Curve, learning_curve_figure
from sb3_diffrl.random_state import preserved_random_state
from sb3_diffrl.schedules import Constant

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

CARD = "README.md"
CURVE = "training_curve.png"
REPLAY = "replay.gif"
UNKNOWN = "an environment without a name"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Showcase:
    """
    What a card shows beside the model's own settings.

    :param env_id: name of the task
    :param env_kwargs: arguments of the env that ``gymnasium.make`` took
    :param evaluations: by what was evaluated, such as ``"clean"``
    :param curve: environment steps and success rates, or returns
    :param curve_episodes: episodes of each success rate, for its interval; None for returns
    :param replay_env: env to film, if it renders
    :param license: of the model, such as ``"mit"``
    """

    env_id: str = UNKNOWN
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    evaluations: Mapping[str, Evaluation] = field(default_factory=dict)
    curve: Curve | None = None
    curve_episodes: int | None = None
    replay_env: VecEnv | None = None
    license: str | None = None


def write_card(folder: Path, model: DiffusionPPO, showcase: Showcase, load_arguments: str) -> None:
    """
    Write the card and its pictures.

    :param folder: where
    :param model: what is shared
    :param showcase: what to show of it
    :param load_arguments: arguments of ``from_pretrained`` that load it
    """
    from huggingface_hub import ModelCard, ModelCardData

    pictures = []
    if showcase.curve:
        learning_curve_figure(folder / CURVE, showcase.curve, showcase.curve_episodes)
        pictures.append(f"![Learning curve]({CURVE})")
    if showcase.replay_env is not None and record_gif(folder / REPLAY, model, showcase.replay_env):
        pictures.append(f"![Replay]({REPLAY})")
    data = ModelCardData(
        library_name="sb3-diffrl",
        tags=[
            *("DiffusionPPO", "diffusion-policy", "stable-baselines3", "reinforcement-learning"),
            *("deep-reinforcement-learning", "robotics", showcase.env_id),
        ],
        pipeline_tag="reinforcement-learning",
        license=showcase.license,
        model_name="DiffusionPPO",
        eval_results=eval_results(showcase) or None,
    )
    parts = [
        f"# DiffusionPPO on {showcase.env_id}",
        "A diffusion policy trained with `sb3-diffrl`, a Stable-Baselines3 algorithm. The model is "
        "plain data, `config.json` and safetensors files: loading it runs no code that came with "
        "it.",
        _results(showcase.evaluations),
        *pictures,
        "## Use",
        _usage(model, showcase, load_arguments),
        "## Method",
        _method(model),
    ]
    body = "\n\n".join(part for part in parts if part)
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n").save(folder / CARD)


def eval_results(showcase: Showcase) -> list[EvalResult]:
    """
    :param showcase: with its evaluations
    :return: success rates, where episodes report success, and mean returns, as the Hub lists them
    """
    from huggingface_hub import EvalResult

    results = []
    for title, evaluation in showcase.evaluations.items():
        metrics: dict[str, Any] = {"mean_reward": _mean_return(evaluation, "{:.2f} +/- {:.2f}")}
        if _reports_success(evaluation):
            metrics = {"success_rate": round(evaluation.success_rate, 4), **metrics}
        results += [
            EvalResult(
                task_type="reinforcement-learning",
                task_name="reinforcement-learning",
                dataset_type=showcase.env_id,
                dataset_name=showcase.env_id,
                dataset_config=title,
                metric_type=name,
                metric_name=f"{name} ({title})",
                metric_value=value,
            )
            for name, value in metrics.items()
        ]
    return results


def _reports_success(evaluation: Evaluation) -> bool:
    return any("is_success" in info for info in evaluation.infos)


def _mean_return(evaluation: Evaluation, form: str) -> str:
    """Mean and half the width of its 95 % interval."""
    n = len(evaluation.returns)
    spread = float(evaluation.returns.std(ddof=1)) if n > 1 else 0.0
    return form.format(float(evaluation.returns.mean()), 1.96 * spread / math.sqrt(n))


def _results(evaluations: Mapping[str, Evaluation]) -> str:
    if not evaluations:
        return ""
    rows = ["| | success rate | mean return | episodes |", "|---|---|---|---|"]
    for title, evaluation in evaluations.items():
        rate = "not reported"
        if _reports_success(evaluation):
            low, high = evaluation.interval
            rate = f"{evaluation.success_rate:.3f} [{low:.3f}, {high:.3f}]"
        mean = _mean_return(evaluation, "{:.2f} ± {:.2f}")
        rows.append(f"| {title} | {rate} | {mean} | {len(evaluation.returns)} |")
    return "\n".join(["## Results", "", "With 95 % intervals.", "", *rows])


def _usage(model: DiffusionPPO, showcase: Showcase, load_arguments: str) -> str:
    given = [
        f"{name}={json.dumps(value) if isinstance(value, str) else value}"
        for name, value in showcase.env_kwargs.items()
        if name != "render_mode" and isinstance(value, str | bool | int | float)
    ]
    env_id = showcase.env_id
    make = (
        "env = ...  # the task it was trained on"
        if env_id == UNKNOWN
        else (f"env = gym.make({', '.join([json.dumps(env_id), *given])})")
    )
    lines = ["import gymnasium as gym", "", "from sb3_diffrl import DiffusionPPO"]
    lines += ["from sb3_diffrl.wrappers import rewrap"] * bool(model.env_wrappers)
    lines += ["", make]
    if model.get_vec_normalize_env() is None:
        lines += [
            f"model = DiffusionPPO.from_pretrained({load_arguments})",
            *["env = rewrap(env, model.env_wrappers)"] * bool(model.env_wrappers),
            "",
            "observation, _ = env.reset()",
            "action, _ = model.predict(observation)",
        ]
    else:
        lines += [
            f"model = DiffusionPPO.from_pretrained({load_arguments}, env=env)",
            "",
            "vec_env = model.get_env()  # normalises observations as in training",
            "observations = vec_env.reset()",
            "actions, _ = model.predict(observations)",
        ]
    return "\n".join(["```python", *lines, "```"])


def _method(model: DiffusionPPO) -> str:
    policy = model.policy
    prior = "none: trained from scratch, without a KL term"
    if policy.has_prior:
        prior = "a frozen diffusion policy, included; training is held to it by the KL weight"
    terms = ((term, getattr(model.imitation, term)) for term in model.imitation.terms)
    imitated = [f"{term} `{schedule}`" for term, schedule in terms if schedule != Constant(0.0)]
    rows = {
        "prior": prior,
        "KL weight (beta)": f"`{model.beta}`",
        "mixing of policy and prior": f"`{model.mixing}`",
        "imitation during RL": ", ".join(imitated) or "none",
        "denoising": f"{policy.process.denoising_steps} steps of {policy.process.noise_levels} "
        f"noise levels, {policy.diffusion_kwargs['noise_schedule']} noise schedule, "
        f"exploration floor {policy.diffusion_kwargs['sigma_min']}",
        "network": f"`{type(policy.actor.denoiser).__name__}`, layers `{policy.net_arch}`",
        "observations": f"`{model.observation_space}`",
        "actions": f"`{model.action_space}`",
        "wrappers": ", ".join(map(_wrapper, model.env_wrappers)) or "none",
        "environment steps": f"{model.env_steps:,}",
    }
    lines = (f"| {name} | {' '.join(str(value).split())} |" for name, value in rows.items())
    return "\n".join(["| | |", "|---|---|", *lines])


def _wrapper(record: Mapping[str, Any]) -> str:
    arguments = ", ".join(f"{name}={value}" for name, value in record["arguments"].items())
    return f"`{record['name']}({arguments})`"


def record_gif(
    path: Path, model: DiffusionPPO, env: VecEnv, n_frames: int = 150, size: int = 320
) -> bool:
    """
    Film the first of the envs; the global random generators are left as they were.

    :param path: a GIF file
    :param model: what acts
    :param env: what it acts in
    :param n_frames: at most; fewer where two episodes end before
    :param size: of the longer side, pixels
    :return: whether there is a film: False where the env does not render to arrays
    """
    from PIL import Image

    if env.render_mode != "rgb_array":
        log.info("No replay: the env's render_mode is %r, not 'rgb_array'.", env.render_mode)
        return False
    metadata = env.get_attr("metadata", [0])[0] or {}
    frames: list[Any] = []
    with preserved_random_state(seed=0):
        env.seed(0)
        observations, episodes = env.reset(), 0
        while len(frames) < n_frames and episodes < 2:
            frame = env.get_images()[0]
            if frame is None:
                return False
            image = Image.fromarray(np.asarray(frame, np.uint8)).convert("RGB")
            image.thumbnail((size, size))
            frames.append(image.quantize(64))
            actions, _ = model.predict(observations)  # type: ignore[arg-type]  # VecEnv's
            observations, _, dones, _ = env.step(actions)
            episodes += bool(dones[0])
    duration = max(20, round(1000 / metadata.get("render_fps", 30)))
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=duration, loop=0)
    return True
