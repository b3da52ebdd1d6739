"""
Trajectories of imitation: from its folders, and its objects.

python -m examples.demonstrations_imitation [FOLDER]   (without one, a small one made by imitation)
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from examples.sample_demonstrations import FIXTURES, pretrain
from sb3_diffrl import Demonstrations


def main() -> None:
    """Read, show, pre-train."""
    path = Path(sys.argv[1]) if sys.argv[1:] else FIXTURES / "imitation"
    pretrain(Demonstrations.from_imitation(path))

    # What `imitation.data.rollout.rollout(...)` returns is read as it is; all that counts are the
    # attributes of a Trajectory.
    trajectories = [SimpleNamespace(obs=np.zeros((11, 4)), acts=np.zeros((10, 2)))]
    print("from objects:", Demonstrations.from_imitation(trajectories))


if __name__ == "__main__":
    main()
