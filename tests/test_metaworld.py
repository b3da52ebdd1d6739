"""Meta-World's tasks, their perturbations and the demonstrations of their experts."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import yaml
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.env_util import make_vec_env

import sb3_diffrl.envs  # noqa: F401  (registers the environment)
from benchmarks import metaworld_experts
from sb3_diffrl import Demonstrations
from sb3_diffrl.envs.metaworld import (
    LEVELS,
    TASKS,
    MetaWorldEnv,
    Perturbation,
    expert_success,
    metaworld_demonstrations,
)
from sb3_diffrl.envs.metaworld.tasks import TaskHooks, make_expert
from sb3_diffrl.imitation import Imitation
from sb3_diffrl.zoo import load_demonstrations, load_hyperparams, shipped

mujoco = pytest.importorskip("mujoco")
pytest.importorskip("metaworld")

ROOT = Path(__file__).parents[1]
ENV_ID = "sb3_diffrl/MetaWorld-v0"
STILL = np.zeros(4, np.float32)
SECOND_OBJECT = "stick-push"  # the one of the twenty whose observation has two objects


def first_observations(env: gym.Env, n: int) -> np.ndarray:
    """The first observations of ``n`` episodes."""
    return np.array([env.reset(seed=0 if i == 0 else None)[0] for i in range(n)])


def episode(env: gym.Env, seed: int | None, n: int = 20) -> np.ndarray:
    """Observations and rewards of random actions."""
    rng = np.random.default_rng(0)
    seen = [np.append(env.reset(seed=seed)[0], 0)]
    for _ in range(n):
        observation, reward, terminated, *_ = env.step(rng.uniform(-1, 1, 4).astype(np.float32))
        seen.append(np.append(observation, float(reward)))
        if terminated:
            break
    return np.concatenate(seen)


# -- the environment ---------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_an_environment(task: str) -> None:
    env = MetaWorldEnv(task, "positions")
    assert env.observation_space == gym.spaces.Box(-np.inf, np.inf, (39,), np.float32)
    assert env.action_space == gym.spaces.Box(-1.0, 1.0, (4,), np.float32)
    gymnasium_check_env(env, skip_render_check=True)
    observation, info = env.reset(seed=1)
    assert info == {"is_success": False}
    for _ in range(5):
        before = observation
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        assert observation in env.observation_space
        assert np.array_equal(observation[18:36], before[:18])  # what was seen one step ago
        assert -1 <= reward <= 0
        assert info["is_success"] is terminated is bool(info["success"])
        assert truncated is False
    assert (task == SECOND_OBJECT) == bool(observation[11:18].any())


@pytest.mark.filterwarnings("ignore")
def test_sb3_s_checker_passes_with_all_perturbations() -> None:
    sb3_check_env(gym.make(ENV_ID, perturbation="all"))


def test_any_of_the_fifty_tasks_can_be_made_by_either_name() -> None:
    assert MetaWorldEnv("hammer-v3").task == MetaWorldEnv("hammer").task == "hammer"
    assert len(set(TASKS)) == 20


def episodes_of(task: str) -> np.ndarray:
    """A first episode, others, and one that is seeded as the first was, end to end."""
    env = gym.make(ENV_ID, task=task, perturbation="all")
    first, other, unseeded, again = (episode(env, seed) for seed in (5, 6, None, 5))
    assert np.array_equal(again, first)
    assert not np.array_equal(other, first)
    assert not np.array_equal(unseeded, other)
    return np.concatenate([first, other, unseeded])


def test_a_seed_gives_the_same_episodes_bit_for_bit() -> None:
    tasks = ("assembly", "window-open", "door-lock")
    program = (
        "import sys, numpy as np\n"
        "from tests.test_metaworld import episodes_of\n"
        f"played = np.concatenate([episodes_of(task) for task in {tasks}])\n"
        "sys.stdout.write(played.tobytes().hex())"
    )
    command = [sys.executable, "-c", program]
    output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    elsewhere = np.frombuffer(bytes.fromhex(output))
    assert np.array_equal(elsewhere, np.concatenate([episodes_of(task) for task in tasks]))


def test_the_first_observation_shows_where_things_are() -> None:
    """In Meta-World itself it shows where some were an episode before."""
    env = MetaWorldEnv("window-open", "positions")
    for seed in range(5):
        first = env.reset(seed=seed)[0]
        second = env.step(STILL)[0]
        assert np.abs(second[4:7] - first[4:7]).max() < 2e-3
        assert first[36:39] - first[4:7] == pytest.approx(
            env.reset(seed=9)[0][36:39] - env.reset(seed=9)[0][4:7], abs=1e-3
        )


def test_the_time_limit_is_gymnasium_s_and_may_be_longer_than_meta_world_s() -> None:
    env = gym.make(ENV_ID, task="drawer-open", max_episode_steps=510)
    env.reset(seed=0)
    ends = [env.step(STILL)[2:4] for _ in range(510)]
    assert ends[:-1] == [(False, False)] * 509
    assert ends[-1] == (False, True)
    spec = gym.spec(ENV_ID)
    assert spec.max_episode_steps == 250


def test_vectorised_envs_differ() -> None:
    env = make_vec_env(ENV_ID, 3, seed=0, env_kwargs={"task": "push", "perturbation": "positions"})
    goals = np.asarray(env.reset())[:, 36:38]
    assert len(np.unique(goals, axis=0)) == 3


# -- rewards and success -----------------------------------------------------------------------


@pytest.mark.parametrize("task", ["drawer-open", "door-unlock", "push"])
def test_success_ends_the_episode(task: str) -> None:
    dense = metaworld_demonstrations(task, 1, seed=3)
    sparse = metaworld_demonstrations(task, 1, seed=3, reward="sparse")
    assert np.array_equal(dense.actions, sparse.actions)
    rewards = np.asarray(dense.rewards)
    assert rewards.min() >= -1
    assert rewards.max() <= 0
    assert np.asarray(sparse.rewards).tolist() == [0] * (len(rewards) - 1) + [1]

    env = gym.make(ENV_ID, task=task)
    env.reset(seed=3)
    for t, action in enumerate(np.asarray(dense.actions)):
        _, reward, terminated, truncated, info = env.step(action)
        assert terminated == info["is_success"] == (t == len(rewards) - 1)
        assert not truncated
        assert reward == pytest.approx((info["unscaled_reward"] - 10) / 10)


def test_contacts_are_meta_world_s() -> None:
    env: Any = gym.make(ENV_ID, task="pick-place").unwrapped
    task, expert = env._task, make_expert("pick-place-v3")
    geoms = [task._get_id_main_object(), task.data.geom("rightpad_geom").id]
    found = []
    observation, _ = env.reset(seed=0)
    for _ in range(60):
        observation, *_ = env.step(expert(observation.astype(float)))
        for geom in geoms:
            ours = task.touching_object(geom)
            assert ours == super(TaskHooks, task).touching_object(geom)
            found.append(ours)
    assert 5 < sum(found) < 60


# -- positions ---------------------------------------------------------------------------------


def test_positions_are_those_asked_for() -> None:
    """Pick-place: its own box is ±10 cm by ±5 cm for object and goal, the goal's height varies."""
    centre, goal = np.array([0, 0.65]), np.array([0, 0.85])
    n = 300
    clean = first_observations(MetaWorldEnv("pick-place"), n)
    moved = first_observations(MetaWorldEnv("pick-place", "positions"), n)
    halved = first_observations(MetaWorldEnv("pick-place", {"goals": 0.05}), n)
    for seen, reach, goal_reach in ((clean, 0.02, 0.02), (moved, 0.1, 0.1), (halved, 0.02, 0.05)):
        for offset, limit in ((seen[:, 4:6] - centre, reach), (seen[:, 36:38] - goal, goal_reach)):
            assert np.abs(offset).max() < limit + 5e-4
            assert np.abs(offset).max() > 0.9 * limit
            if limit < 0.1:  # the task does not want object and goal near to one another
                assert offset.std(0) == pytest.approx([limit / np.sqrt(3)] * 2, rel=0.15)
    assert np.linalg.norm(moved[:, 4:6] - moved[:, 36:38], axis=1).min() > 0.149
    assert np.ptp(clean[:, 6]) < 1e-3
    assert np.ptp(moved[:, 6]) < 1e-3
    assert moved[:, 38].min() > 0.074
    assert moved[:, 38].max() < 0.276


@pytest.mark.parametrize("task", TASKS)
def test_boxes_are_wide_where_perturbed_and_within_the_task_s_own_where_not(task: str) -> None:
    moved = MetaWorldEnv(task, "positions").position_box
    unmoved = MetaWorldEnv(task, spread=1.0)  # all of the task's own box
    own, clean = unmoved.position_box, MetaWorldEnv(task).position_box
    parts = 1 if own.shape[1] == 3 or task == "disassemble" else 2
    for part in range(parts):
        xy, z = [3 * part, 3 * part + 1], 3 * part + 2
        assert moved[1, xy] - moved[0, xy] == pytest.approx(0.2)
        assert moved[:, xy].mean(0) == pytest.approx(own[:, xy].mean(0))
        assert (clean[1] - clean[0])[xy].max() <= 0.04 + 1e-9
        for box in (moved, clean):
            assert own[0, z] <= box[0, z] <= box[1, z] <= own[1, z]
    assert (clean[0] >= own[0] - 1e-9).all()
    assert (clean[1] <= own[1] + 1e-9).all()


def test_the_level_object_leaves_the_goal() -> None:
    seen = first_observations(MetaWorldEnv("assembly", "object"), 100)
    goals = seen[:, 36:38] - [0, 0.8]
    assert np.abs(goals).max() < 0.02 + 1e-5
    objects = seen[:, 4:6] - seen[:, 4:6].mean(0)
    assert np.abs(objects).max() > 0.08


def test_perturbed_scenes_leave_room_for_the_robot() -> None:
    env = MetaWorldEnv("door-lock", "positions")
    for seed in range(40):
        env.reset(seed=seed)
        assert np.min(env.data.contact.dist, initial=0) > -0.02


# -- distractors -------------------------------------------------------------------------------


def test_a_distractor_is_seen_stays_where_it_is_and_can_be_pushed() -> None:
    env = MetaWorldEnv("assembly", "distractors")
    observation, _ = env.reset(seed=4)
    body = env.data.body("distractor_0")
    place = body.xpos.copy()
    assert observation[11:14] == pytest.approx(place)
    assert np.linalg.norm(observation[14:18]) == pytest.approx(1)
    assert np.array_equal(observation[29:36], observation[11:18])
    for way in ([-0.1, 0, 0.2], [-0.1, 0, 0.05], [0.05, 0, 0.05]):
        target = place + np.array(way)
        assert np.abs(body.xpos - place).max() < 1e-3
        for _ in range(60):
            move = np.clip(10 * (target - observation[:3]), -1, 1)
            before = observation
            observation, *_ = env.step(np.append(move, 1).astype(np.float32))
            assert np.array_equal(observation[29:36], before[11:18])
    assert observation[11] - place[0] > 0.05
    assert observation[11:14] == pytest.approx(body.xpos)


def test_distractors_keep_clear() -> None:
    env = MetaWorldEnv("push", {"distractors": 4, "positions": 0.1})
    assert env.observation_space.shape == (39 + 3 * 7,)
    seen = first_observations(env, 40)
    blocks = np.concatenate([seen[:, None, 11:13], seen[:, 39:].reshape(40, 3, 7)[:, :, :2]], 1)
    things = np.concatenate([seen[:, None, 4:6], seen[:, None, 36:38], blocks], 1)
    apart = np.linalg.norm(things[:, :, None] - things[:, None], axis=-1)
    pairs = np.triu_indices(6, 1)
    assert apart[:, pairs[0], pairs[1]][:, 1:].min() > 0.0999  # but for object and goal
    assert blocks.std((0, 1)).min() > 0.08
    after = env.step(STILL)[0]
    assert np.abs(after[39:].reshape(3, 7)[:, :3] - seen[-1, 39:].reshape(3, 7)[:, :3]).max() < 1e-3


def test_where_there_is_no_place_distractors_are_appended() -> None:
    env = MetaWorldEnv(SECOND_OBJECT, "distractors")
    observation, _ = env.reset(seed=0)
    assert observation[39:42] == pytest.approx(env.data.body("distractor_0").xpos)
    clean = MetaWorldEnv(SECOND_OBJECT, distractor_slots=1)
    assert clean.observation_space == env.observation_space
    assert not clean.reset(seed=0)[0][39:].any()
    assert np.array_equal(clean.reset(seed=0)[0][4:7], observation[4:7])


# -- light, dynamics, sensing ------------------------------------------------------------------


def test_light_changes_images_and_not_states() -> None:
    try:
        envs = [
            MetaWorldEnv("push", level, render_mode="rgb_array", width=64, height=48)
            for level in (None, "lighting")
        ]
        for env in envs:
            env.reset(seed=0)
        images = [env.render() for env in envs]
    except Exception as error:
        pytest.skip(f"cannot render here: {error}")
    plain, lit = envs
    assert images[0].shape == (48, 64, 3)
    assert images[0].dtype == np.uint8
    assert images[0].std() > 10
    assert np.abs(images[1].astype(int) - images[0]).mean() > 3
    assert np.array_equal(episode(plain, 0), episode(lit, 0))
    lit.reset()
    other = lit.render()
    lit.reset(seed=0)
    assert np.abs(other.astype(int) - images[1]).mean() > 1
    assert np.array_equal(lit.render(), images[1])
    for env in envs:
        env.close()


def test_dynamics_are_drawn_around_the_original_values() -> None:
    plain, env = MetaWorldEnv("pick-place"), MetaWorldEnv("pick-place", "dynamics")
    plain.reset(seed=0)
    model, body, base = env.model, env.model.body("obj").id, plain.model
    factors = []
    for _ in range(200):
        env.reset()
        factor = [
            model.geom_friction[0, 0] / base.geom_friction[0, 0],
            model.body_mass[body] / base.body_mass[body],
            model.dof_damping[0] / base.dof_damping[0],
        ]
        factors.append(factor)
        assert model.geom_friction == pytest.approx(base.geom_friction * factor[0])
        assert model.dof_damping == pytest.approx(base.dof_damping * factor[2])
    logarithms = np.log2(factors)
    assert np.abs(logarithms).max() <= 1 + 1e-9
    assert logarithms.std(0) == pytest.approx([1 / np.sqrt(3)] * 3, rel=0.15)
    assert np.abs(logarithms.mean(0)).max() < 4 / np.sqrt(3 * 200)
    robot = model.body_rootid == model.body("base").id
    assert np.array_equal(model.body_mass[robot], base.body_mass[robot])
    # What MuJoCo derives from the masses fits them.
    derived = copy.copy(model)
    mujoco.mj_setConst(derived, mujoco.MjData(derived))
    assert model.body_invweight0[body] == pytest.approx(derived.body_invweight0[body])
    assert model.dof_invweight0[-6:] == pytest.approx(derived.dof_invweight0[-6:])
    assert model.body_subtreemass[body] == pytest.approx(derived.body_subtreemass[body])


def test_dynamics_change_what_happens() -> None:
    demonstrations = metaworld_demonstrations("push", 1)
    ends = []
    for level in (None, {"friction": 1.0}, {"mass": 1.0}, {"damping": 1.0}):
        env = MetaWorldEnv("push", level)
        env.reset(seed=0)
        for action in np.asarray(demonstrations.actions):
            observation, *_ = env.step(action)
        ends.append(observation[:7])
    assert all(np.abs(end - ends[0]).max() > 1e-4 for end in ends[1:])


def test_sensing_is_perturbed_by_gymnasium_s_make() -> None:
    """Objects are seen elsewhere, by up to 5 mm and noise; hand, gripper and goal as they are."""
    env = gym.make(ENV_ID, task=SECOND_OBJECT, perturbation="sensing")
    plain = gym.make(ENV_ID, task=SECOND_OBJECT)
    positions = [4, 5, 6, 11, 12, 13]
    errors = []
    for seed in range(15):
        seen, true = env.reset(seed=seed)[0], plain.reset(seed=seed)[0]
        for t in range(10):
            exact = np.setdiff1d(np.arange(39), [*positions, *(i + 18 for i in positions)])
            assert np.array_equal(seen[exact], true[exact])
            errors.append(seen[positions] - true[positions])
            before = seen
            action = np.array([0.5, 0, 0, 1], np.float32)
            seen = env.step(action)[0]
            true = plain.step(action if t else STILL)[0]  # one step late: first nothing
            assert np.array_equal(seen[18:36], before[:18])
    per_episode = np.array(errors).reshape(15, 10, 6)
    offsets, noise = per_episode.mean(1), per_episode - per_episode.mean(1, keepdims=True)
    assert np.abs(offsets).max() < 0.005 + 0.003
    assert offsets.std() == pytest.approx(0.005 / np.sqrt(3), rel=0.25)
    assert noise.std() * np.sqrt(10 / 9) == pytest.approx(0.002, rel=0.1)


def test_a_level_may_be_given_by_its_fields() -> None:
    levels = ("positions", {"positions": 0.1, "goals": 0.1}, Perturbation(positions=0.1, goals=0.1))
    same = [MetaWorldEnv("push", level) for level in levels]
    first, *others = (env.reset(seed=0)[0] for env in same)
    assert all(np.array_equal(first, other) for other in others)
    assert LEVELS["none"] == MetaWorldEnv("push").perturbation == Perturbation()


# -- experts -----------------------------------------------------------------------------------


def test_demonstrations_are_the_expert_s_successes() -> None:
    made = metaworld_demonstrations("coffee-push", 3, seed=2)
    entry = {
        "sb3_diffrl.envs.metaworld.metaworld_demonstrations": {
            "task": "coffee-push",
            "n_episodes": 3,
            "seed": 2,
        }
    }
    loaded = load_demonstrations(entry)
    assert isinstance(made, Demonstrations)
    assert len(made) == 3
    assert made.successes is not None
    assert made.successes.all()
    for name, array in made.arrays().items():
        assert np.array_equal(np.asarray(array), np.asarray(loaded.arrays()[name]))
    env = MetaWorldEnv("coffee-push")
    made.validate(env.observation_space, env.action_space)
    starts = np.asarray(made.observations)[made.episode_starts]
    assert np.abs(starts[:, 4:6] - [0, 0.6]).max() < 0.02 + 1e-3
    assert not np.array_equal(starts[0], starts[1])


@pytest.mark.parametrize("task", ["assembly", "stick-push"])
def test_demonstrations_carried_over_to_perturbed_scenes_succeed_there(task: str) -> None:
    """Followed with a little feedback; as they were demonstrated they fail there."""
    entry = load_hyperparams(shipped("hyperparams") / "diffppo.yml", "sb3_diffrl/MetaWorld-v0")
    transport = Imitation.parse(entry["imitation"]).transport
    assert transport is not None
    demonstrations = metaworld_demonstrations(task, n_episodes=1)
    demonstrated = np.asarray(demonstrations.observations), np.asarray(demonstrations.actions)
    env = gym.make("sb3_diffrl/MetaWorld-v0", task=task, perturbation="positions")

    def succeeds(observations: np.ndarray, actions: np.ndarray, seed: int) -> bool:
        seen, info = env.reset(seed=seed)
        for t in range(len(actions) + 20):  # the last action is held
            now = min(t, len(actions) - 1)
            action = actions[now].copy()
            action[:3] += 30 * (observations[now, :3] - seen[:3])
            seen, _, done, _, info = env.step(np.clip(action, -1, 1))
            if done:
                break
        return bool(info["is_success"])

    seeds = range(8)
    carried = [succeeds(*transport(*demonstrated, env.reset(seed=s)[0]), s) for s in seeds]
    as_they_were = [succeeds(*demonstrated, s) for s in seeds]
    env.close()
    assert sum(carried) >= 7
    assert sum(as_they_were) <= 2


def test_the_expert_is_measured_in_the_same_environment() -> None:
    successes, lengths = expert_success("drawer-open", "paper", 4)
    assert successes.all()
    assert lengths.max() < 250
    none, _ = expert_success("drawer-open", {"action_delay": 200}, 1)
    assert not none.any()


# -- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "assemble"}, "task: 'assemble', expected one of assembly, basketball"),
        ({"perturbation": "hard"}, "perturbation: 'hard', expected None, one of none, positions"),
        (
            {"perturbation": {"position": 1}},
            r"unknown \['position'\], expected fields of positions",
        ),
        ({"perturbation": {"positions": -1}}, "positions: -1, expected a finite number from 0"),
        ({"perturbation": {"lighting": 2}}, "lighting: 2, expected a finite number from 0 to 1"),
        ({"perturbation": {"distractors": 0.5}}, "distractors: 0.5, expected a whole number"),
        ({"perturbation": {"distractors": 9}}, "distractors: 9, expected a whole number from 0 to"),
        ({"reward": "shaped"}, "reward: 'shaped', expected 'dense' or 'sparse'"),
        ({"spread": -0.1}, "spread: -0.1, expected metres from 0"),
        ({"render_mode": "human"}, "render_mode: 'human', expected None or 'rgb_array'"),
        ({"camera": "front"}, "camera: 'front', expected one of topview"),
        (
            {"perturbation": {"distractors": 3}, "distractor_slots": 1},
            "distractor_slots: 1, expected at least 2 for 3 distractors in assembly",
        ),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MetaWorldEnv(**arguments)


def test_positions_that_the_task_never_accepts_are_refused() -> None:
    with pytest.raises(ValueError, match="none of 10000 draws keeps the distance"):
        MetaWorldEnv("coffee-push", spread=0.005).reset(seed=0)


def test_too_few_successes_are_refused() -> None:
    with pytest.raises(
        RuntimeError, match="the expert succeeded in 0 of 2 episodes, 1 were wanted"
    ):
        metaworld_demonstrations("push", 1, perturbation={"action_delay": 200}, max_attempts=2)
    with pytest.raises(ValueError, match="n_episodes: 0, expected at least 1"):
        metaworld_demonstrations("push", 0)


# -- what users run ----------------------------------------------------------------------------


def test_the_experts_benchmark_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "experts.csv"
    arguments = ["--tasks", "door-unlock", "--episodes", "3", "--fewer-episodes", "2"]
    for levels in (["none"], ["none", "dynamics"]):
        command = ["experts", *arguments, "--output", str(output), "--levels", *levels]
        monkeypatch.setattr(sys, "argv", command)
        metaworld_experts.main()
        assert len(capsys.readouterr().out.splitlines()) == 1
    header, none, dynamics = output.read_text().splitlines()
    assert header.startswith("task,level,n_episodes,success,low,high")
    assert none.startswith("door-unlock,none,3,1.0,0.4385,1.0")
    assert dynamics.startswith("door-unlock,dynamics,2,")
    assert re.search(
        r"\| door-unlock \| 1\.00 \(0\.44 to 1\.00\) \|", output.with_suffix(".md").read_text()
    )


def test_the_example_runs(tmp_path: Path) -> None:
    source = (ROOT / "examples/metaworld_assembly.py").read_text()
    assert source.count("\n") < 60
    short = source.replace("_DEMONSTRATIONS = 20", "_DEMONSTRATIONS = 2").replace("5_000", "20")
    short = short.replace("N_EPISODES = 50", "N_EPISODES = 1").replace("int = 10", "int = 1")
    short = short.replace('"positions", "paper", "dynamics", ', "")
    (tmp_path / "example.py").write_text(short)
    run = subprocess.run(
        [sys.executable, "example.py"], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    pattern = r"clean: success [01]\.00 .*\nsensing: success [01]\.00"
    assert re.search(pattern, run.stdout), run.stdout


@pytest.mark.filterwarnings("ignore")
def test_the_programs_of_the_page_run() -> None:
    page = (ROOT / "docs/metaworld.md").read_text()
    programs = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(programs) == 3
    names: dict[str, Any] = {}
    exec((programs[0] + programs[1]).replace("n_episodes=20", "n_episodes=1"), names)
    assert names["observation"].shape == (39,)
    assert len(names["demonstrations"]) == 1
    for link in re.findall(r"\]\((\.\./[^)]+)\)", page):
        assert (ROOT / "docs" / link).exists(), link
    for name in LEVELS:
        assert f"| `{name}` |" in page
    entry = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)[0])[ENV_ID]
    entry["demonstrations"]["sb3_diffrl.envs.metaworld.metaworld_demonstrations"]["n_episodes"] = 1
    assert len(load_demonstrations(entry["demonstrations"])) == 1
    assert gym.make(ENV_ID, **entry["env_kwargs"]).unwrapped.task == "assembly"  # type: ignore[attr-defined]
