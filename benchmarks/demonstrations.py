"""
Demonstrations larger than memory: what pre-training on them takes.

    python -m benchmarks.demonstrations --folder /tmp/demonstrations

Writes episodes of 0.1, 1 and 10 GB into the folder, one after the other, pre-trains on each in a
process of its own whose private memory is limited to 2 GB (``RLIMIT_DATA``), and deletes them. For
comparison the smaller ones are also read into memory first, without the limit. Writes
``benchmarks/results/demonstrations.json``, a list of records: ``gigabytes``, ``decisions``,
``form`` (mapped, in memory), ``anonymous_mib`` (peak of the process's anonymous memory),
``imported_mib`` (that after the imports alone), ``checks_s`` (what pre-training takes besides its
gradient steps: checks and statistics) and ``steps_per_s``; beside it a table (``.md``) and a figure
(``.png``).
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from matplotlib.figure import Figure
from stable_baselines3.common.logger import Logger

from sb3_diffrl import Demonstrations, DiffusionMlpPolicy, DiffusionPPO
from sb3_diffrl.demonstrations.arrays import ConcatenatedArray
from sb3_diffrl.files import write_text

RESULTS = Path(__file__).parent / "results"
SIZES_GB = (0.1, 1.0, 10.0)
IN_MEMORY_GB = 1.0  # the largest that is also read into memory
LIMIT_BYTES = 2 * 10**9
OBSERVATION, ACTION, LENGTH = 1024, 8, 200
BLOCK_EPISODES = 32
FORMS = {"mapped": 0, "in memory": 10**12}  # by what is read into memory at most

Record = dict[str, Any]


class Wide(gym.Env[np.ndarray, np.ndarray]):
    """Gives the spaces of the demonstrations; it is never stepped."""

    observation_space = spaces.Box(-np.inf, np.inf, (OBSERVATION,))
    action_space = spaces.Box(-1, 1, (ACTION,))


class Clock(Logger):
    """Notes when pre-training logs: halfway and at the end."""

    times: list[float]

    def dump(self, step: int = 0) -> None:
        """Note the time."""
        self.times = [*getattr(self, "times", []), time.perf_counter()]


def write_demonstrations(path: Path, gigabytes: float, progress_bar: bool = True) -> Demonstrations:
    """
    Write episodes that repeat one block of random numbers, from which nothing can be learned.

    :param path: of the ``.demos`` folder
    :param gigabytes: size of the observations
    :param progress_bar: whether to show one
    :return: what was written, mapped
    """
    rng = np.random.default_rng(0)
    rows = BLOCK_EPISODES * LENGTH
    observations = rng.standard_normal((rows, OBSERVATION), dtype=np.float32)
    actions = rng.uniform(-1, 1, (rows, ACTION)).astype(np.float32)
    n = max(1, round(gigabytes * 1e9 / observations.nbytes))
    demonstrations = Demonstrations(
        ConcatenatedArray([observations] * n),
        ConcatenatedArray([actions] * n),
        np.arange(1, n * BLOCK_EPISODES + 1) * LENGTH,
    )
    return Demonstrations.load(demonstrations.save(path, progress_bar=progress_bar))


def anonymous_mib() -> float:
    """The anonymous memory of this process: not what is mapped from files."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = (line for line in status.splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


def measure(path: Path, form: str, gradient_steps: int) -> Record:
    """
    Pre-train in this process, limited where the data are mapped.

    :param path: of the demonstrations
    :param form: one of :data:`FORMS`
    :param gradient_steps: of pre-training
    :return: what it took
    """
    if form == "mapped":
        resource.setrlimit(resource.RLIMIT_DATA, (LIMIT_BYTES, LIMIT_BYTES))
    imported = peak = anonymous_mib()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, anonymous_mib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    model = DiffusionPPO(DiffusionMlpPolicy, Wide(), device="cpu", seed=0)
    demonstrations = Demonstrations.load(path)
    clock = Clock(folder=None, output_formats=[])
    model.set_logger(clock)
    start = time.perf_counter()
    model.pretrain(
        demonstrations,
        gradient_steps=gradient_steps,
        validation_interval=gradient_steps // 2,
        validation_fraction=0.0,
        memory_bytes=FORMS[form],
    )
    total = time.perf_counter() - start
    steps_per_s = gradient_steps / 2 / (clock.times[1] - clock.times[0])
    done.set()
    watcher.join()
    return {
        "gigabytes": round(demonstrations.n_bytes / 1e9, 3),
        "decisions": demonstrations.n_decisions,
        "form": form,
        "imported_mib": round(imported),
        "anonymous_mib": round(peak),
        "checks_s": round(total - gradient_steps / steps_per_s, 2),
        "steps_per_s": round(steps_per_s, 1),
    }


def run(folder: Path, sizes_gb: Sequence[float], gradient_steps: int) -> list[Record]:
    """
    :param folder: where the demonstrations are written, one size at a time, and deleted
    :param sizes_gb: their sizes
    :param gradient_steps: of pre-training
    :return: one record for each size and form
    """
    records = []
    for gigabytes in sizes_gb:
        path = folder / f"{gigabytes:g}GB.demos"
        try:
            write_demonstrations(path, gigabytes)
            for form in FORMS:
                if form == "in memory" and gigabytes > IN_MEMORY_GB:
                    continue
                child = [sys.executable, "-m", "benchmarks.demonstrations", "--measure", form]
                child += ["--folder", str(path), "--gradient-steps", str(gradient_steps)]
                result = subprocess.run(child, stdout=subprocess.PIPE, text=True, check=True)
                records.append(json.loads(result.stdout.splitlines()[-1]))
                print(records[-1], flush=True)
        finally:
            shutil.rmtree(path, ignore_errors=True)
    return records


def report(records: Sequence[Record], target: Path) -> None:
    """
    :param records: of :func:`run`
    :param target: of the files, without suffix
    """
    write_text(target.with_suffix(".json"), json.dumps(list(records), indent=2) + "\n")
    lines = [
        "| data | form | peak of anonymous memory | of it the imports | checks and statistics "
        "| gradient steps |",
        "|---|---|---|---|---|---|",
        *(
            f"| {r['gigabytes']:g} GB | {r['form']} | {r['anonymous_mib']:,} MiB "
            f"| {r['imported_mib']:,} MiB | {r['checks_s']:.1f} s | {r['steps_per_s']:.0f} /s |"
            for r in records
        ),
    ]
    write_text(target.with_suffix(".md"), "\n".join(lines) + "\n")
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    memory, speed = figure.subplots(1, 2)
    for form, marker in zip(FORMS, "os", strict=True):
        of_form = [r for r in records if r["form"] == form]
        sizes = [r["gigabytes"] for r in of_form]
        memory.plot(sizes, [r["anonymous_mib"] / 1024 for r in of_form], marker=marker, label=form)
        speed.plot(sizes, [r["steps_per_s"] for r in of_form], marker=marker, label=form)
    memory.axhline(LIMIT_BYTES / 2**30, color="grey", linestyle=":", label="limit")
    memory.set_ylabel("peak of anonymous memory (GiB)")
    speed.set_ylabel("gradient steps per second")
    for axes in (memory, speed):
        axes.set_xscale("log")
        axes.set_xlabel("demonstrations (GB)")
        axes.set_ylim(bottom=0)
        axes.legend()
    figure.savefig(target.with_suffix(".png"), dpi=150)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="for the data, deleted after")
    parser.add_argument("--sizes", type=float, nargs="+", default=SIZES_GB, help="in GB")
    parser.add_argument("--gradient-steps", type=int, default=1000)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--measure", choices=FORMS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure is not None:
        print(json.dumps(measure(args.folder, args.measure, args.gradient_steps)))
        return
    report(run(args.folder, args.sizes, args.gradient_steps), args.output / "demonstrations")


if __name__ == "__main__":
    main()
