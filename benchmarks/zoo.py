"""
The shipped hyperparameters against RL Zoo's PPO at equal environment steps, both trained by the
Zoo's own command, and the prior alone.

    python benchmarks/zoo_experts.py        # once: the demonstrations
    python benchmarks/zoo.py --envs Pendulum-v1 Hopper-v5 --seeds 0 1 2
    python benchmarks/zoo.py --report

Every run is written to the results file when it is done, and skipped when it is there. Beside it
there are a table (``.md``) and the learning curves (``.png``).
"""

import argparse
import json
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from sb3_diffrl.bench.zoo_commands import zoo_hyperparams, zoo_load, zoo_train
from sb3_diffrl.demonstrations import Demonstrations
from sb3_diffrl.files import write_text
from sb3_diffrl.plots import benchmark_figure
from sb3_diffrl.zoo import load_hyperparams, shipped

ROOT = Path(__file__).resolve().parent.parent
# By label of the method: the Zoo's algorithm and the named experiment.
METHODS = {
    "Diffusion only": ("diffppo", "diffusion_only"),
    "DiffRL": ("diffppo", "diffrl"),
    "PPO": ("ppo", None),
}
ENVS = [
    "sb3_diffrl/AvoidingPerturbed-v0",
    *("Pendulum-v1", "MountainCarContinuous-v0", "Hopper-v5"),
    *("Walker2d-v5", "HalfCheetah-v5", "BipedalWalker-v3"),
]


class Run(NamedTuple):
    """
    What is trained.

    :param env_id: environment
    :param method: one of ``METHODS``
    :param seed: of training
    """

    env_id: str
    method: str
    seed: int


def entry(env_id: str) -> dict[str, Any]:
    """:return: DiffRL's hyperparameters for an environment"""
    return load_hyperparams(shipped("hyperparams") / "diffppo.yml", env_id)


def plan(args: argparse.Namespace) -> list[Run]:
    """
    :param args: of the command line
    :return: the runs that are asked for; without demonstrations there is no prior to measure
    """
    return [
        Run(env_id, method, seed)
        for env_id in args.envs
        for method in args.methods
        for seed in args.seeds
        if method != "Diffusion only" or entry(env_id).get("demonstrations")
    ]


def execute(run: Run, args: argparse.Namespace) -> dict[str, Any]:
    """
    Train by the Zoo's command, then measure.

    :param run: what to train
    :param args: of the command line
    :return: a record of the results file
    """
    algo, experiment = METHODS[run.method]
    folder = args.logs / run.env_id / run.method.replace(" ", "_") / str(run.seed)
    steps = 0 if run.method == "Diffusion only" else args.steps or entry(run.env_id)["n_timesteps"]
    config = str(experiment)
    if algo == "ppo":
        config = str(folder / "ppo.yml")
        write_text(config, yaml.safe_dump({run.env_id: zoo_hyperparams(algo, run.env_id)}))
    arguments = ["-conf", config, "--seed", str(run.seed), "--log-interval", "50"]
    arguments += ["--eval-freq", str(max(1, int(steps) // args.points)), "--eval-episodes", "10"]
    if steps:
        arguments += ["-n", str(int(steps))]
    if args.params and algo != "ppo":
        arguments += ["-params", *args.params]
    start = time.perf_counter()
    path = zoo_train(algo, run.env_id, folder, *arguments)
    wall_s = time.perf_counter() - start
    curve: list[tuple[int, float]] = []
    if (path / "evaluations.npz").exists():
        with np.load(path / "evaluations.npz") as file:
            curve = [
                (int(step), float(returns.mean()))
                for step, returns in zip(file["timesteps"], file["results"], strict=True)
            ]
    model, env = zoo_load(algo, run.env_id, path, seed=1000 + run.seed)
    returns = episode_returns(
        Demonstrations.from_rollouts(model, env, args.episodes, algo == "ppo")
    )
    env.close()
    return {
        **run._asdict(),
        "env_steps": int(model.num_timesteps),
        "return": round(float(returns.mean()), 2),
        "std": round(float(returns.std()), 2),
        "episodes": args.episodes,
        "wall_s": round(wall_s, 1),
        "demonstrations": None if algo == "ppo" else demonstrated(run.env_id, args.demonstrations),
        "curve": curve,
    }


def episode_returns(episodes: Demonstrations) -> np.ndarray:
    """
    :param episodes: with rewards
    :return: ``(E,)`` returns
    """
    assert episodes.rewards is not None
    return np.add.reduceat(episodes.rewards, episodes.episode_starts)


def read_results(path: Path) -> list[dict[str, Any]]:
    """
    :param path: the results file, which may be missing
    :return: its records
    """
    return json.loads(path.read_text()) if path.exists() else []


def run_all(runs: list[Run], args: argparse.Namespace) -> int:
    """
    Execute what the results file does not have yet.

    :param runs: what to do
    :param args: of the command line
    :return: number of runs that failed
    """
    done = {tuple(r[name] for name in Run._fields) for r in read_results(args.output)}
    todo = [run for run in runs if run not in done]
    failed = 0
    with ThreadPoolExecutor(args.jobs) as pool:
        futures = {pool.submit(partial(execute, run, args)): run for run in todo}
        for future in as_completed(futures):
            run = futures[future]
            try:
                result = future.result()
            except Exception as error:  # whatever it is, the others' results are to be written
                print(f"{run}: failed: {error!r}", flush=True)
                failed += 1
                continue
            lines = [json.dumps(r) for r in [*read_results(args.output), result]]
            write_text(args.output, "[\n" + ",\n".join(lines) + "\n]\n")
            print(f"{run}: {result['return']} in {result['wall_s']} s", flush=True)
    return failed


def report(output: Path) -> str:
    """
    Write the table and the figure that belong to a results file.

    :param output: the results file
    :return: the table, in Markdown
    """
    results = read_results(output)
    lines = [
        "# RL Zoo: results",
        "",
        "Made by `python benchmarks/zoo.py` from "
        f"`{output.name}`. Returns of fresh episodes after training: mean over the seeds and the "
        "largest difference from it. DiffRL acts by `predict`'s recommended mode (sampled), PPO "
        "deterministically, as the Zoo does. Environment steps are those of training; the "
        "demonstrations' are their own column.",
        "",
        "| environment | method | seeds × episodes | environment steps | return | demonstrations: "
        "steps, return | wall s |",
        "|---|---|---|---|---|---|---|",
    ]
    panels: dict[str, dict[str, list[list[tuple[int, float]]]]] = {}
    for env_id in dict.fromkeys(r["env_id"] for r in results):
        for method in METHODS:
            runs = [r for r in results if (r["env_id"], r["method"]) == (env_id, method)]
            if not runs:
                continue
            returns = [r["return"] for r in runs]
            mean = statistics.mean(returns)
            spread = f" ± {max(abs(r - mean) for r in returns):.2g}" if len(runs) > 1 else ""
            lines.append(
                f"| {env_id} | {method} | {len(runs)} × {runs[0]['episodes']} "
                f"| {statistics.mean(r['env_steps'] for r in runs):,.0f} | {mean:.4g}{spread} "
                f"| {runs[0]['demonstrations'] or '–'} "
                f"| {statistics.mean(r['wall_s'] for r in runs):.0f} |"
            )
            curves = [r["curve"] for r in runs if r["curve"]]
            if curves:
                panels.setdefault(env_id, {})[method] = curves
    text = "\n".join(lines)
    write_text(output.with_suffix(".md"), text + "\n")
    if panels:
        benchmark_figure(output.with_suffix(".png"), panels, {}, ylabel="return")
    return text


def demonstrated(env_id: str, folder: Path) -> str | None:
    """
    :param env_id: environment
    :param folder: of the demonstrations
    :return: number of their steps and their mean return, None where there are none
    """
    path = folder / f"{env_id}.npz"
    if not entry(env_id).get("demonstrations") or not path.exists():
        return None
    episodes = Demonstrations.load(path)
    return f"{episodes.n_decisions:,}, {episode_returns(episodes).mean():.1f}"


def parser() -> argparse.ArgumentParser:
    """:return: the command line"""
    result = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = result.add_argument
    add("--envs", nargs="+", default=ENVS, help="default: all that have an entry")
    add("--methods", nargs="+", choices=[*METHODS], default=[*METHODS])
    add("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add("--steps", type=int, help="environment steps; default: the entry's n_timesteps")
    add("--episodes", type=int, default=50, help="of the evaluation after training")
    add("--points", type=int, default=20, help="of the learning curve")
    add("--params", nargs="+", help="hyperparameters to overwrite, as the Zoo's -params")
    add("--jobs", type=int, default=1, help="runs at a time, one core each")
    add("--output", type=Path, default=ROOT / "benchmarks/results/zoo.json")
    add("--logs", type=Path, default=Path("logs/zoo"), help="folder of the runs")
    add("--demonstrations", type=Path, default=Path("demonstrations"), help="their folder")
    add("--report", action="store_true", help="only write the table and the figure")
    return result


def main() -> int:
    """Run and report."""
    args = parser().parse_args()
    failed = 0 if args.report else run_all(plan(args), args)
    print(report(args.output))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
