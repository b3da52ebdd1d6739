"""
Small demonstrations in the exact layouts of robomimic, CALVIN and RLBench, and a training on them:
what the examples share, so that each runs without a download.
"""

import pickle
import sys
import types
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_diffrl import Demonstrations, DiffusionPPO

FIXTURES = Path(__file__).parents[1] / "tests/fixtures"


class StandIn(gym.Env[Any, np.ndarray]):
    """An environment with the spaces of demonstrations; take the simulator's own in its place."""

    def __init__(self, demonstrations: Demonstrations):
        seen: Any = demonstrations.observations
        boxes: dict[str, spaces.Space[Any]] = {
            key: spaces.Box(-np.inf, np.inf, array.shape[1:], np.float32)
            for key, array in (seen if isinstance(seen, dict) else {"": seen}).items()
        }
        self.observation_space = spaces.Dict(boxes) if isinstance(seen, dict) else boxes[""]
        self.action_space = spaces.Box(-1, 1, demonstrations.actions.shape[1:], np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Any observation."""
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """The end, after any action."""
        return self.observation_space.sample(), 0.0, True, False, {}


def pretrain(demonstrations: Demonstrations, gradient_steps: int = 200) -> None:
    """
    Train a small diffusion policy on demonstrations and print how well it imitates.

    :param demonstrations: with actions in [-1, 1]
    :param gradient_steps: number of minibatches
    """
    print(demonstrations)
    model = DiffusionPPO(
        "policy",
        StandIn(demonstrations),
        policy_kwargs={"net_arch": [64, 64], "denoising_steps": 5},
        device="cpu",
        seed=0,
    )
    result = model.pretrain(demonstrations, gradient_steps=gradient_steps, batch_size=64)
    print(f"{gradient_steps} gradient steps: denoising loss {result.train_loss:.3f}")


def write_robomimic(path: Path, lengths: tuple[int, ...] = (30, 25, 20, 35)) -> Path:
    """
    :param path: of the HDF5 file
    :param lengths: of the episodes, of which all but the last are for training
    :return: the path
    """
    import h5py

    generator = np.random.default_rng(0)
    names = [f"demo_{i}" for i in range(len(lengths))]
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = sum(lengths)
        data.attrs["env_args"] = '{"env_name": "Lift", "type": 1, "env_kwargs": {}}'
        for name, length in zip(names, lengths, strict=True):
            demo = data.create_group(name)
            demo.attrs["num_samples"] = length
            demo["actions"] = generator.uniform(-1, 1, (length, 7))
            demo["rewards"] = (np.arange(length) == length - 1).astype(np.float64)
            demo["dones"] = (np.arange(length) == length - 1).astype(np.int64)
            for group in ("obs", "next_obs"):
                demo[f"{group}/robot0_eef_pos"] = generator.normal(size=(length, 3))
                demo[f"{group}/object"] = generator.normal(size=(length, 10))
                demo[f"{group}/agentview_image"] = generator.integers(
                    0, 256, (length, 12, 12, 3), np.uint8
                )
        file["mask/train"] = np.array(names[:-1], "S")
        file["mask/valid"] = np.array(names[-1:], "S")
    return path


def write_calvin(folder: Path, first_frame: int = 100, frames: int = 40) -> Path:
    """
    :param folder: of the split, created
    :param first_frame: number of the first frame
    :param frames: how many, in two episodes of play
    :return: the folder
    """
    generator = np.random.default_rng(0)
    (folder / "lang_annotations").mkdir(parents=True)
    for frame in range(first_frame, first_frame + frames):
        np.savez_compressed(
            folder / f"episode_{frame:07d}.npz",
            actions=generator.normal(size=7),
            rel_actions=np.append(generator.uniform(-1, 1, 6), generator.choice([-1.0, 1.0])),
            robot_obs=generator.normal(size=15),
            scene_obs=generator.normal(size=24),
            rgb_static=generator.integers(0, 256, (20, 20, 3), np.uint8),
            depth_static=generator.random((20, 20), np.float32),
        )
    middle, last = first_frame + frames // 2, first_frame + frames - 1
    np.save(folder / "ep_start_end_ids.npy", [[first_frame, middle - 1], [middle, last]])
    annotations: Any = {
        "language": {
            "ann": ["open the drawer", "push the red block left", "pull the handle"],
            "task": ["open_drawer", "push_red_block_left", "open_drawer"],
            "emb": generator.normal(size=(3, 1, 8)).astype(np.float32),
        },
        "info": {
            "episodes": [],
            "indx": [(first_frame + 2, middle - 3), (middle, middle + 9), (middle + 5, last)],
        },
    }
    np.save(folder / "lang_annotations/auto_lang_ann.npy", annotations, allow_pickle=True)
    return folder


def write_rlbench(task: Path, episodes: int = 3, length: int = 25, images: bool = True) -> Path:
    """
    :param task: folder of the task, created
    :param episodes: how many, of one variation
    :param length: decisions of each
    :param images: whether to write a camera
    :return: the folder
    """
    from PIL import Image

    generator = np.random.default_rng(0)
    variation = task / "variation0"
    for episode in range(episodes):
        folder = variation / f"episodes/episode{episode}"
        (folder / "front_rgb").mkdir(parents=True)
        joints = np.cumsum(generator.uniform(-0.05, 0.05, (length + 1, 7)), axis=0)
        steps = []
        for t in range(length + 1):
            opened = float(t < length // 2)
            target = {"joint_position_action": np.append(joints[t] + 0.01, opened)} if t else {}
            steps.append(
                {
                    "front_rgb": None,
                    "joint_velocities": generator.normal(size=7),
                    "joint_positions": joints[t],
                    "joint_forces": generator.normal(size=7),
                    "gripper_open": opened,
                    "gripper_pose": generator.normal(size=7),
                    "gripper_matrix": np.eye(4),
                    "gripper_joint_positions": np.full(2, 0.04),
                    "gripper_touch_forces": np.zeros(6),
                    "task_low_dim_state": generator.normal(size=5),
                    "misc": {"front_camera_near": 0.01, **target},
                }
            )
            if images:
                pixels = np.full((16, 16, 3), 10 * episode + t, np.uint8)
                Image.fromarray(pixels).save(folder / f"front_rgb/{t}.png")
        write_rlbench_pickle(folder / "low_dim_obs.pkl", steps)
    descriptions = ["reach the red target", "touch the red ball"]
    (variation / "variation_descriptions.pkl").write_bytes(pickle.dumps(descriptions))
    return task


def write_rlbench_pickle(path: Path, steps: list[dict[str, Any]]) -> None:
    """
    Pickle a demonstration under the names of RLBench's classes.

    :param path: of the file
    :param steps: the attributes of each observation
    """
    modules = {
        name: types.ModuleType(name)
        for name in ("rlbench", "rlbench.backend", "rlbench.demo", "rlbench.backend.observation")
    }
    demo_class = type("Demo", (), {"__module__": "rlbench.demo"})
    step_class = type("Observation", (), {"__module__": "rlbench.backend.observation"})
    for known in (demo_class, step_class):
        setattr(modules[known.__module__], known.__name__, known)

    def instance(known: type, attributes: dict[str, Any]) -> Any:
        made = known()
        made.__dict__.update(attributes)
        return made

    observations = [instance(step_class, attributes) for attributes in steps]
    seed = ("MT19937", np.arange(4, dtype=np.uint32), 0, 0, 0.0)
    demo = instance(demo_class, {"_observations": observations, "random_seed": seed})
    sys.modules.update(modules)
    try:
        path.write_bytes(pickle.dumps(demo))
    finally:
        for name in modules:
            del sys.modules[name]
