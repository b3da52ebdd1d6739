"""
RLBench's folders of demonstrations, without RLBench or CoppeliaSim.

python -m examples.demonstrations_rlbench [FOLDER OF A TASK]   (without one, a small one is written)
"""

import sys
import tempfile
from pathlib import Path

from examples.sample_demonstrations import pretrain, write_rlbench
from sb3_diffrl import Demonstrations
from sb3_diffrl.demonstrations import rlbench


def main() -> None:
    """Read, show, pre-train."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(sys.argv[1]) if sys.argv[1:] else write_rlbench(Path(folder, "reach_target"))
        print("instructions:", sorted(set(rlbench.instructions(path))))
        keys = ("joint_positions", "gripper_open", "task_low_dim_state")
        pretrain(Demonstrations.from_rlbench(path, keys, concatenate=True))

        images = Demonstrations.from_rlbench(path, "front_rgb", memory=0)
        print("a camera, read from its files when asked for:", images.observations)


if __name__ == "__main__":
    main()
