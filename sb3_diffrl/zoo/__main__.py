"""``python -m sb3_diffrl.zoo train --algo diffppo ...``"""

import runpy
import sys

import sb3_diffrl_zoo_hook as zoo_hook


def main() -> None:
    """Run a script of the Zoo with ``diffppo`` in it: the first argument is its name."""
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(
            "usage: python -m sb3_diffrl.zoo SCRIPT ..., where SCRIPT is one of RL Zoo's: train, "
            "enjoy, record_video, record_training, push_to_hub, load_from_hub, benchmark, "
            "plots.all_plots, plots.plot_train, plots.plot_from_file"
        )
    script = sys.argv.pop(1)
    zoo_hook.install()
    runpy.run_module(f"rl_zoo3.{script}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
