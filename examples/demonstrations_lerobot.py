"""
LeRobot datasets, without LeRobot: state, images, videos, and the instruction of each episode.

python -m examples.demonstrations_lerobot [FOLDER]   (without one, a small one made by LeRobot)
"""

import sys
import zlib
from pathlib import Path

import numpy as np

from examples.sample_demonstrations import FIXTURES, pretrain
from sb3_diffrl import Demonstrations
from sb3_diffrl.demonstrations import lerobot


def embed(sentences: list[str]) -> np.ndarray:
    """A stand-in for a sentence encoder, such as ``SentenceTransformer(name).encode``."""
    return np.stack(
        [np.random.default_rng(zlib.crc32(s.encode())).normal(size=8) for s in sentences]
    )


def main() -> None:
    """Read, show, pre-train."""
    path = Path(sys.argv[1]) if sys.argv[1:] else FIXTURES / "lerobot_v3.0"
    print("instructions:", sorted(set(lerobot.instructions(path))))
    states = Demonstrations.from_lerobot(path, "observation.state", language=embed)
    pretrain(states)

    everything = Demonstrations.from_lerobot(path, memory=0)
    print("all but videos, read from the files when asked for:", everything.observations)


if __name__ == "__main__":
    main()
