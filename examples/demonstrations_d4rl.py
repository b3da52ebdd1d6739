"""A dataset in the layout of D4RL, here a small one that is made first; needs h5py."""

import tempfile
from pathlib import Path

import h5py
import numpy as np

from sb3_diffrl import Demonstrations
from sb3_diffrl.envs.avoiding import avoiding_demonstrations


def write(path: Path) -> None:
    """Write demonstrations as D4RL does: flat arrays, and flags where an episode ended."""
    made = avoiding_demonstrations(20)
    ended = np.zeros(made.n_decisions, bool)
    ended[made.episode_ends - 1] = True
    with h5py.File(path, "w") as file:
        file["observations"] = np.asarray(made.observations)
        file["actions"] = np.asarray(made.actions)
        file["rewards"] = ended.astype(np.float32)
        file["terminals"] = ended
        file["timeouts"] = np.zeros_like(ended)


def main() -> None:
    """Read it; keep the shorter episodes; convert them to a folder that is memory-mapped."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "avoiding-expert-v0.hdf5")
        write(source)
        demonstrations = Demonstrations.from_d4rl(source)
        short = demonstrations.filter(demonstrations.lengths <= np.median(demonstrations.lengths))
        print(f"{demonstrations}: {short} of at most the median length")
        mapped = Demonstrations.load(short.save(Path(folder, "short.demos"), progress_bar=True))
        print(f"mapped: {mapped}, returns {mapped.returns.min():g} to {mapped.returns.max():g}")


if __name__ == "__main__":
    main()
