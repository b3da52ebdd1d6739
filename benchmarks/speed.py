"""
How fast: ratios against references on the same work, measured alternately in one run.

    python -m benchmarks.speed                  against the naive form of the same mathematics
    python -m benchmarks.speed --dppo PATH      also against a checkout of DPPO
    python -m benchmarks.speed --growth         how time and memory grow
    python -m benchmarks.speed --report         only the table and the figures

Writes ``benchmarks/results/speed.json``, a list of records: ``work`` (act, update, pretrain,
iteration), ``size``, ``batch`` (envs, pairs, samples, env steps), ``threads``, ``reference``
(naive, dppo, sb3-ppo), ``ours_s``, ``reference_s``, ``ratio`` (median of the pairs measured one
after the other) and, where measured, ``roofline_s``, the time of the matrix products alone, and
``ours_mib`` and ``reference_mib``, the memory added at the peak. Beside it a table (``.md``) and a
figure (``.png``). The whole iteration needs the extra ``mujoco``.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from torch.nn import functional as F

from benchmarks.contenders import (
    HOPPER,
    SIZES,
    Dppo,
    Naive,
    Ours,
    Pairs,
    Size,
    make_demonstrations,
    policy_kwargs,
)
from benchmarks.speed_figures import growth_figure, speed_figure
from sb3_diffrl import Demonstrations, DiffusionMlpPolicy, DiffusionPPO
from sb3_diffrl.files import write_text
from sb3_diffrl.wrappers import ActionChunkWrapper

RESULTS = Path(__file__).parent / "results"
ACT_ENVS = (1, 16, 40)
UPDATE_PAIRS = (50_000, 5_000)
PRETRAIN_BATCHES = (128, 256)
PRETRAIN_STEPS = 100
LONG_S = 20.0
PPO_STEPS = 2048  # SB3's default
N_ENVS, N_DECISIONS, N_EPOCHS, MINIBATCH_CHAINS = 16, 125, 5, 500

Record = dict[str, Any]

# -- timing ------------------------------------------------------------------------------------


def seconds(work: Callable[[], Any]) -> float:
    """
    :param work: what to measure
    :return: wall time of one call
    """
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def alternate(works: Sequence[Callable[[], Any]], budget_s: float) -> list[list[float]]:
    """
    Measure several works in turn, so that what disturbs the machine disturbs all.

    :param works: what to measure; each is called once before
    :param budget_s: time to spend on all; at least 3 rounds are done, 2 where one takes long
    :return: wall times of each work
    """
    start = time.perf_counter()
    for work in works:
        work()
    rounds = 3 if time.perf_counter() - start < LONG_S else 2
    times: list[list[float]] = []
    start = time.perf_counter()
    while len(times) < rounds or (time.perf_counter() - start < budget_s and len(times) < 200):
        times.append([seconds(work) for work in works])
    return [list(column) for column in zip(*times, strict=True)]


def repeated(work: Callable[[], Any], n: int) -> Callable[[], None]:
    """
    :param work: too short to be measured alone
    :param n: number of calls
    :return: all of them
    """

    def run() -> None:
        for _ in range(n):
            work()

    return run


def record(
    work: str, size: str, batch: int, reference: str, times: Sequence[Sequence[float]], n: int = 1
) -> Record:
    """
    :param work: name of the work
    :param size: name of the sizes
    :param batch: how many rows
    :param reference: name of the reference
    :param times: of ours, of the reference and, if measured, of the roofline
    :param n: how often the work was done in each time
    :return: a record of the results file
    """
    ours, theirs, *roofline = times
    result = {
        "work": work,
        "size": size,
        "batch": batch,
        "threads": th.get_num_threads(),
        "reference": reference,
        "ours_s": statistics.median(ours) / n,
        "reference_s": statistics.median(theirs) / n,
        "ratio": statistics.median(b / a for a, b in zip(ours, theirs, strict=True)),
    }
    if roofline:
        result["roofline_s"] = statistics.median(roofline[0]) / n
    print(json.dumps(result), flush=True)
    return result


# -- the machine's limit -----------------------------------------------------------------------


def forward_products(size: Size, rows: int) -> Callable[[], None]:
    """
    :param size: of the networks
    :param rows: of the batch
    :return: the matrix products of one call of the denoiser behind its conditions
    """
    noisy, hidden = th.randn(rows, size.flat_dim), th.randn(rows, size.width)
    first, bias = th.randn(size.width, size.flat_dim), th.randn(size.width)
    layers = [th.randn(size.width, size.width) for _ in range(2)]
    last = th.randn(size.flat_dim, size.width)

    def run() -> None:
        F.linear(noisy, first)
        for weight in layers:
            F.linear(hidden, weight, bias)
        F.linear(hidden, last)

    return run


def backward_products(size: Size, rows: int) -> Callable[[], None]:
    """
    :param size: of the networks
    :param rows: of the batch
    :return: the matrix products of the gradients of one call of the denoiser
    """
    noisy, hidden = th.randn(rows, size.flat_dim), th.randn(rows, size.width)
    square, last = th.randn(size.width, size.width), th.randn(size.flat_dim, size.width)

    def run() -> None:
        noisy.t() @ hidden
        for _ in range(2):
            hidden.t() @ hidden
            hidden @ square
        hidden.t() @ noisy
        noisy @ last

    return run


def update_products(size: Size, pairs: int, rows: int = 2_000) -> Callable[[], None]:
    """
    :param size: of the networks
    :param pairs: of the minibatch
    :param rows: of a part that fits the cache
    :return: the matrix products of an update of the actor
    """
    works = forward_products(size, rows), backward_products(size, rows)
    return repeated(lambda: [work() for work in works], pairs // rows)


# -- the works ---------------------------------------------------------------------------------


def references(size: Size, dppo: Path | None) -> dict[str, Naive | Dppo]:
    """
    :param size: of task and networks
    :param dppo: checkout, if any
    :return: what ours is measured against
    """
    return {"naive": Naive(size), **({"dppo": Dppo(size, dppo)} if dppo else {})}


def measure(size: Size, dppo: Path | None, budget_s: float) -> list[Record]:
    """
    Acting, update and pre-training.

    :param size: of task and networks
    :param dppo: checkout, if any
    :param budget_s: time for each record
    :return: the records
    """
    ours, records = Ours(size), []
    others = references(size, dppo)
    if size is not HOPPER:  # four times the work: against one reference
        others = dict([*others.items()][-1:])
    for name, other in others.items():
        for n in ACT_ENVS:
            obs = th.randn(n, size.obs_dim)
            works = (
                lambda obs=obs: ours.act(obs),
                lambda obs=obs, other=other: other.act(obs),
                repeated(forward_products(size, n), size.denoising_steps),
            )
            times = alternate(works, budget_s)
            records.append(record("act", size.name, n, name, times))
        for pairs in UPDATE_PAIRS:
            chains = pairs // size.finetuned_steps
            updates = [contender.update(chains) for contender in (ours, other)]
            times = alternate([*updates, update_products(size, pairs)], budget_s)
            records.append(record("update", size.name, pairs, name, times))
            del updates
            if pairs == max(UPDATE_PAIRS) and size is HOPPER:
                records[-1] |= {
                    f"{key}_mib": added_memory(who, size, chains, dppo)
                    for key, who in (("ours", "ours"), ("reference", name))
                }
        for batch in PRETRAIN_BATCHES:
            steps = [contender.pretraining(batch, PRETRAIN_STEPS) for contender in (ours, other)]
            times = alternate(steps, budget_s)
            records.append(record("pretrain", size.name, batch, name, times, PRETRAIN_STEPS))
    return records


def added_memory(who: str, size: Size, chains: int, dppo: Path | None) -> float:
    """
    :param who: contender
    :param size: of task and networks
    :param chains: decisions of the minibatch
    :param dppo: checkout, if any
    :return: MiB by which the second update raises the peak of a fresh process
    """
    command = [sys.executable, "-m", "benchmarks.speed", "--memory", who, size.name, str(chains)]
    if dppo:
        command += ["--dppo", str(dppo)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def memory_of_update(who: str, size: Size, chains: int, dppo: Path | None) -> float:
    """
    What the child process of :func:`added_memory` does.

    :param who: contender
    :param size: of task and networks
    :param chains: decisions of the minibatch
    :param dppo: checkout, if any
    :return: MiB
    """
    contender = Ours(size) if who == "ours" else references(size, dppo)[who]
    update = contender.update(chains)
    update() if chains <= 100 else contender.update(100)()  # libraries set themselves up
    return peak_added(update)


def peak_added(work: Callable[[], Any]) -> float:
    """
    :param work: what to measure
    :return: MiB of resident memory at its peak above those before (Linux)
    """

    def resident(field: str) -> float:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) / 1024
        raise OSError(f"/proc/self/status has no {field}")

    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before


# -- whole iterations --------------------------------------------------------------------------


class TimedVecEnv(DummyVecEnv):
    """Counts the time spent in the environments."""

    in_step = 0.0

    def step_wait(self) -> Any:
        """See :class:`stable_baselines3.common.vec_env.DummyVecEnv`."""
        start = time.perf_counter()
        result = super().step_wait()
        self.in_step += time.perf_counter() - start
        return result


def make_hopper(n_envs: int, horizon: int) -> TimedVecEnv:
    """
    :param n_envs: number of environments
    :param horizon: actions per decision, 1 for the environment as it is
    :return: Hopper-v5
    """

    def make() -> gym.Env:
        env = Monitor(gym.make("Hopper-v5"))
        return ActionChunkWrapper(env, horizon) if horizon > 1 else env

    return TimedVecEnv([make] * n_envs)


def reference_iteration(contender: Naive | Dppo, env: VecEnv) -> Callable[[], None]:
    """
    :param contender: a reference
    :param env: of chunks
    :return: one iteration: rollout, likelihoods and values, GAE, epochs of minibatches of pairs
    """
    k, gamma, gae_lambda = contender.size.finetuned_steps, 0.99, 0.95
    state = {"obs": env.reset()}

    def run() -> None:
        observations, chains, rewards, dones = [], [], [], []
        for _ in range(N_DECISIONS):
            obs = th.as_tensor(np.asarray(state["obs"]), dtype=th.float32)
            chain = contender.act(obs)
            state["obs"], reward, done, _ = env.step(contender.actions(chain))
            observations.append(obs)
            chains.append(chain)
            rewards.append(th.as_tensor(reward))
            dones.append(th.as_tensor(done))
        with th.no_grad():
            last = contender.values(th.as_tensor(np.asarray(state["obs"]), dtype=th.float32))
            flat_obs, flat_chains = th.cat(observations), th.cat(chains)
            values = contender.values(flat_obs).view(N_DECISIONS, -1)
            log_prob = contender.old_log_probs(flat_obs, flat_chains)
        advantages, running = th.zeros_like(values), th.zeros(len(last))
        for t in reversed(range(N_DECISIONS)):
            following = last if t == N_DECISIONS - 1 else values[t + 1]
            going = 1 - dones[t].float()
            delta = rewards[t] + gamma * following * going - values[t]
            running = delta + gamma * gae_lambda * going * running
            advantages[t] = running
        old_values = values.flatten()
        data = Pairs(
            flat_obs,
            flat_chains,
            log_prob,
            advantages.flatten(),
            advantages.flatten() + old_values,
        )
        for _ in range(N_EPOCHS):
            for pairs in th.randperm(len(flat_obs) * k).split(MINIBATCH_CHAINS * k):
                contender.minibatch(data, old_values, pairs // k, pairs % k)

    return run


def our_iteration(size: Size, env: VecEnv) -> Callable[[], Any]:
    """
    :param size: of the networks
    :param env: of chunks
    :return: one iteration of ``learn``
    """
    model = DiffusionPPO(
        DiffusionMlpPolicy,
        env,
        n_steps=N_DECISIONS,
        batch_size=MINIBATCH_CHAINS,
        n_epochs=N_EPOCHS,
        beta=0.01,
        policy_kwargs=policy_kwargs(size),
        seed=0,
        device="cpu",
    )
    model.policy.freeze_prior()
    return lambda: model.learn(N_DECISIONS * env.num_envs)


def iterations(dppo: Path | None, budget_s: float) -> list[Record]:
    """
    :param dppo: checkout, if any
    :param budget_s: time for each record
    :return: whole iterations on Hopper-v5, with 10 fine-tuned steps and with 4 steps in all
    """
    records = []
    env_steps = N_ENVS * N_DECISIONS * HOPPER.horizon
    few = replace(HOPPER, name="hopper-K4", denoising_steps=4, finetuned_steps=4)
    for size in (HOPPER, few):
        for name, other in references(size, dppo).items():
            ours_env, other_env = (make_hopper(N_ENVS, size.horizon) for _ in range(2))
            works = our_iteration(size, ours_env), reference_iteration(other, other_env)
            times = alternate(works, budget_s)
            share = ours_env.in_step / (len(times[0]) + 1) / statistics.mean(times[0])
            records.append(record("iteration", size.name, env_steps, name, times))
            records[-1]["env_share"] = share
    return records


def against_ppo(budget_s: float) -> list[Record]:
    """
    :param budget_s: time for each record
    :return: SB3's PPO by its defaults, 256×2, against ours with 4 denoising steps: one env, single
        actions and chunks of 4
    """
    records = []
    for horizon in (1, 4):
        ours = DiffusionPPO(
            "MlpPolicy",
            make_hopper(1, horizon),
            n_steps=PPO_STEPS // horizon,
            policy_kwargs={"net_arch": [256, 256], "denoising_steps": 4},
            device="cpu",
            beta=0.0,
        )
        stock = PPO(
            "MlpPolicy",
            make_hopper(1, 1),
            n_steps=PPO_STEPS,
            policy_kwargs={"net_arch": [256, 256]},
            device="cpu",
        )
        works = (
            lambda ours=ours, horizon=horizon: ours.learn(PPO_STEPS // horizon),
            lambda stock=stock: stock.learn(PPO_STEPS),
        )
        times = alternate(works, budget_s)
        records.append(record("iteration", f"256x2-K4-H{horizon}", PPO_STEPS, "sb3-ppo", times))
    return records


# -- growth ------------------------------------------------------------------------------------

GROWTH: dict[str, tuple[int, ...]] = {
    "denoising steps": (1, 2, 5, 10, 20, 50),
    "environments": (1, 4, 16, 64, 256),
    "denoiser parameters": (64, 128, 256, 512, 1024),  # by the width of the layers
    "minibatch": (64, 256, 1024, 4096),
    "chunk length": (1, 2, 4, 8, 16),
    "demonstrations": (10_000, 30_000, 100_000, 300_000, 1_000_000),
}


def growth_point(axis: str, value: int) -> dict[str, float]:
    """
    One point of a curve, with all but one size fixed: 5 steps, 256×3, 16 envs, minibatches of 512.

    :param axis: key of ``GROWTH``
    :param value: on it
    :return: ``seconds`` and ``mib``, the memory added at the peak, of one rollout step or one
        update, or for demonstrations of reading the file and 50 steps of pre-training
    """
    size = Size(
        "growth",
        obs_dim=11,
        action_dim=3,
        horizon=value if axis == "chunk length" else 4,
        width=value if axis == "denoiser parameters" else 256,
        denoising_steps=value if axis == "denoising steps" else 5,
        finetuned_steps=value if axis == "denoising steps" else 5,
    )
    ours = Ours(size)
    if axis == "environments":
        obs = th.randn(value, size.obs_dim)
        work: Callable[[], Any] = repeated(lambda: ours.act(obs), 10)
    elif axis == "demonstrations":
        path = RESULTS / "growth_demonstrations.npz"
        make_demonstrations(size, value // 100, 100).save(path)
        model = ours.model(2)

        def work() -> None:
            model.pretrain(Demonstrations.load(path), gradient_steps=50, validation_fraction=0)

    else:
        work = ours.update(value if axis == "minibatch" else 512)
    if axis != "demonstrations":
        work()
    mib = peak_added(work)
    best = min(seconds(work) for _ in range(3))
    if axis == "demonstrations":
        path.unlink()
    if axis == "denoiser parameters":
        value = sum(parameter.numel() for parameter in ours.policy.actor.parameters())
    return {"value": value, "seconds": best, "mib": mib}


def grow() -> dict[str, list[dict[str, float]]]:
    """:return: the curves, each point measured in a process of its own"""
    curves: dict[str, list[dict[str, float]]] = {}
    for axis, values in GROWTH.items():
        for value in values:
            command = [sys.executable, "-m", "benchmarks.speed", "--point", axis, str(value)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            point = json.loads(done.stdout.splitlines()[-1])
            print(axis, point, flush=True)
            curves.setdefault(axis, []).append(point)
    return curves


# -- report ------------------------------------------------------------------------------------


def table(records: Sequence[Record]) -> str:
    """
    :param records: of the results file
    :return: Markdown
    """
    lines = [
        "| work | size | batch | threads | reference | ours | reference | ratio | of the roofline "
        "| memory, ours / reference |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in records:
        roof = f"{r['roofline_s'] / r['ours_s']:.0%}" if "roofline_s" in r else ""
        memory = f"{r['ours_mib']:.0f} / {r['reference_mib']:.0f} MiB" if "ours_mib" in r else ""
        lines.append(
            f"| {r['work']} | {r['size']} | {r['batch']:,} | {r['threads']} | {r['reference']} "
            f"| {r['ours_s'] * 1e3:,.2f} ms | {r['reference_s'] * 1e3:,.2f} ms "
            f"| {r['ratio']:.2f} | {roof} | {memory} |"
        )
    shares = [
        f"- {r['size']}, {r['threads']} threads: {r['env_share']:.0%}"
        for r in records
        if r.get("env_share") is not None and r["reference"] == "naive"
    ]
    if shares:
        lines += ["", "Share of the environments in our whole iteration:", "", *shares]
    return "\n".join(lines) + "\n"


def report(path: Path) -> None:
    """
    Print the table, and write it and the figures.

    :param path: results file
    """
    records = json.loads(path.read_text())
    text = table(records)
    command = "python -m benchmarks.speed --dppo PATH"
    header = (
        f"# Speed\n\n`{command}` on torch {th.__version__}, CPU. Ratios above 1: ours is faster.\n"
    )
    write_text(path.with_suffix(".md"), f"{header}\n{text}")
    print(text)
    speed_figure(path.with_suffix(".png"), records)
    growth = path.with_name(f"{path.stem}_growth.json")
    if growth.exists():
        growth_figure(growth.with_suffix(".png"), json.loads(growth.read_text()))


def main() -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--dppo", type=Path, help="checkout of DPPO to measure beside")
    add("--sizes", nargs="+", choices=SIZES, default=[*SIZES])
    add("--threads", nargs="+", type=int, default=[1, 2])
    add("--budget", type=float, default=5.0, help="seconds for each record")
    add("--output", type=Path, default=RESULTS / "speed.json")
    add("--growth", action="store_true", help="measure the growth curves")
    add("--report", action="store_true", help="only write the table and the figures")
    add("--memory", nargs=3, help=argparse.SUPPRESS)
    add("--point", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory:
        who, size, chains = args.memory
        print(memory_of_update(who, SIZES[size], int(chains), args.dppo))
        return 0
    if args.point:
        th.set_num_threads(1)
        print(json.dumps(growth_point(args.point[0], int(args.point[1]))))
        return 0
    args.output.parent.mkdir(parents=True, exist_ok=True)
    if args.growth:
        curves = json.dumps(grow(), indent=1)
        write_text(args.output.with_name(f"{args.output.stem}_growth.json"), curves)
    elif not args.report:
        records = []
        for threads in args.threads:
            th.set_num_threads(threads)
            for name in args.sizes:
                records += measure(SIZES[name], args.dppo, args.budget)
            records += iterations(args.dppo, args.budget) + against_ppo(args.budget)
            write_text(args.output, json.dumps(records, indent=1))
    report(args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
