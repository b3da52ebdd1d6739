"""
How often Meta-World's scripted experts succeed, clean and under each level of perturbation, with
what a policy would see. A task in which the expert fails more than one time in ten is no test of a
policy.

    python benchmarks/metaworld_experts.py
    python benchmarks/metaworld_experts.py --tasks assembly sweep --levels none paper

Rows that the results file already has are skipped. Beside the rows (``.csv``) there is a table
(``.md``) of the same name.
"""

import argparse
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.rows import read_rows, write_rows
from sb3_diffrl.envs.metaworld import LEVELS, TASKS, expert_success
from sb3_diffrl.evaluation import wilson_interval
from sb3_diffrl.files import write_text

ROOT = Path(__file__).resolve().parent.parent
MANY = ("none", "positions")  # levels with more episodes
UNSEEN = ("lighting",)  # states do not show it
SOLVABLE = 0.9


class Row(NamedTuple):
    """
    A task under one level.

    :param task: name
    :param level: name
    :param n_episodes: played
    :param success: success rate
    :param low: of its 95 % interval
    :param high: of its 95 % interval
    :param mean_length: steps of the successful episodes
    :param q95_length: 95 % of the successful episodes are not longer
    :param max_length: steps of the longest successful episode
    :param steps_per_second: environment steps per second of processor time, resets included
    """

    task: str
    level: str
    n_episodes: int
    success: float
    low: float
    high: float
    mean_length: float
    q95_length: float
    max_length: int
    steps_per_second: int

    @property
    def cell(self) -> str:
        """The row in the table."""
        text = f"{self.success:.2f} ({self.low:.2f} to {self.high:.2f})"
        return text if self.success >= SOLVABLE else f"{text} ✗"


def measure(task: str, level: str, n_episodes: int, seed: int) -> Row:
    """
    :param task: name
    :param level: name
    :param n_episodes: to play
    :param seed: of the environment
    :return: what came of it
    """
    start = time.process_time()
    successes, lengths = expert_success(task, level, n_episodes, seed)
    speed = lengths.sum() / (time.process_time() - start)
    low, high = wilson_interval(int(successes.sum()), n_episodes)
    good = lengths[successes] if successes.any() else np.array([0])
    return Row(
        task,
        level,
        n_episodes,
        round(float(successes.mean()), 4),
        round(low, 4),
        round(high, 4),
        round(float(good.mean()), 1),
        round(float(np.quantile(good, 0.95)), 1),
        int(good.max()),
        int(speed),
    )


def write(path: Path, rows: list[Row]) -> None:
    """Write rows and table."""
    write_rows(path.with_suffix(".csv"), rows, Row)
    write_text(path.with_suffix(".md"), table(rows))


def table(rows: list[Row]) -> str:
    """:return: a page in Markdown with a line for each task and a column for each level"""
    levels = [level for level in LEVELS if any(row.level == level for row in rows)]
    counts = {
        level: sorted({row.n_episodes for row in rows if row.level == level}) for level in levels
    }
    cells = {(row.task, row.level): row for row in rows}
    tasks = dict.fromkeys(row.task for row in rows)
    lines = [
        "# Meta-World's scripted experts",
        "",
        "Success rate with its 95 % interval (Wilson), acting on what a policy would see. ✗: "
        f"below {SOLVABLE:.2f}, so the expert does not show that the task can be solved there. "
        "States do not show the light: `lighting` is as `none`, and in `paper` and `all` it has no "
        "effect. "
        "Steps: of the successful episodes under `positions`, 95 % of which are not longer.",
        "",
        "| task | " + " | ".join(f"`{level}`" for level in levels) + " | steps |",
        "|---" * (len(levels) + 2) + "|",
    ]
    for task in tasks:
        found = [cells.get((task, level)) for level in levels]
        longest = cells.get((task, "positions"))
        lines.append(
            f"| {task} | "
            + " | ".join(row.cell if row else "" for row in found)
            + f" | {f'{longest.q95_length:.0f}' if longest else ''} |"
        )
    episodes = [f"{level} {'/'.join(map(str, counts[level]))}" for level in levels]
    lines += ["", f"Episodes for each task: {', '.join(episodes)}.", ""]
    return "\n".join(lines)


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    known = [level for level in LEVELS if level not in UNSEEN]
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), help="names")
    parser.add_argument("--levels", nargs="+", default=known, choices=known, help="names")
    parser.add_argument("--episodes", type=int, default=100, help="for none and positions")
    parser.add_argument("--fewer-episodes", type=int, default=30, help="for other levels")
    parser.add_argument("--seed", type=int, default=1000, help="of the environments")
    default = ROOT / "benchmarks/results/metaworld_experts.csv"
    parser.add_argument("--output", type=Path, default=default, help="results file")
    args = parser.parse_args()

    rows = read_rows(args.output, Row)
    order = {
        (task, level): (list(LEVELS).index(level), list(TASKS).index(task) if task in TASKS else 99)
        for level in LEVELS
        for task in {*args.tasks, *(row.task for row in rows)}
    }
    for level in sorted(args.levels, key=lambda level: level not in MANY):
        for task in args.tasks:
            if any((row.task, row.level) == (task, level) for row in rows):
                continue
            n_episodes = args.episodes if level in MANY else args.fewer_episodes
            row = measure(task, level, n_episodes, args.seed)
            rows = sorted([*rows, row], key=lambda row: order[row.task, row.level])
            write(args.output, rows)
            print(f"{task:22} {level:12} {row.cell}  {row.steps_per_second} steps/s", flush=True)


if __name__ == "__main__":
    main()
