"""
CALVIN's folders: segments with their sentence embeddings, some tasks alone, and free play.

python -m examples.demonstrations_calvin [FOLDER OF A SPLIT]   (without one, a small one is written)
"""

import sys
import tempfile
from pathlib import Path

from examples.sample_demonstrations import pretrain, write_calvin
from sb3_diffrl import Demonstrations
from sb3_diffrl.demonstrations import calvin


def main() -> None:
    """Read, show, pre-train."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(sys.argv[1]) if sys.argv[1:] else write_calvin(Path(folder, "training"))
        print("tasks:", sorted(set(calvin.tasks_of(path))))
        print("instructions:", sorted(set(calvin.instructions(path))))
        pretrain(Demonstrations.from_calvin(path, progress_bar=True))

        drawer = Demonstrations.from_calvin(path, tasks=["open_drawer"], concatenate=True, memory=0)
        print("one task, state and sentence as one vector:", drawer.observations)
        play = Demonstrations.from_calvin(path, "rgb_static", annotated=False, memory=0)
        print("play, read frame by frame:", play, play.observations)


if __name__ == "__main__":
    main()
