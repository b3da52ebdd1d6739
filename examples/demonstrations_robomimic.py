"""
robomimic's HDF5 files: the training half of the episodes, state or camera.

python -m examples.demonstrations_robomimic [FILE]   (without a file, a small one is written)
"""

import sys
import tempfile
from pathlib import Path

from examples.sample_demonstrations import pretrain, write_robomimic
from sb3_diffrl import Demonstrations
from sb3_diffrl.demonstrations import robomimic


def main() -> None:
    """Read, show, pre-train."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(sys.argv[1]) if sys.argv[1:] else write_robomimic(Path(folder, "lift.hdf5"))
        print("filters:", robomimic.masks(path))
        keys = ("robot0_eef_pos", "object")
        train = Demonstrations.from_robomimic(path, keys, concatenate=True, mask="train")
        pretrain(train)

        images = Demonstrations.from_robomimic(path, "agentview_image", memory=0)
        print("a camera, read from the file when asked for:", images.observations)


if __name__ == "__main__":
    main()
