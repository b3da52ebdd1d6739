"""Run Stable-Baselines3's own tests of on-policy algorithms with DiffusionPPO in PPO's place.

    python tests/sb3_suite.py [--algorithm MODULE:CLASS] [pytest arguments]

The tests come from the source distribution of the installed version, which pip downloads, or from
the folder that the environment variable SB3_TESTS names. They run from a temporary copy, in which
`PATCHES` gives an environment with discrete actions a Box of actions, so that a test about
something else keeps its meaning. Every test that mentions PPO or A2C runs, except those that
`DESELECTED` names together with the reason. `--algorithm stable_baselines3:PPO` shows that what is
left is fair: stock PPO passes it.
"""

import argparse
import functools
import importlib
import importlib.util
import inspect
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3
from gymnasium.envs.registration import load_env_creator
from stable_baselines3 import DDPG, DQN, PPO, SAC, TD3

CANNOT_RUN = 77  # exit status when the tests of Stable-Baselines3 are out of reach
AT_LEAST = 100  # fewer tests than this mean that the selection has gone wrong

# File, text in it, what takes its place. A text that is not there is an error.
BOX = "self.action_space = spaces.Box(-1.0, 1.0, (1,))"
GPU_ADVICE = 'with pytest.warns(UserWarning, match=r"You are trying to run PPO on the GPU"):'
OWN_ACTIONS = "actions = model.policy(observations)[0]; values_1, _, _ ="
PATCHES = (
    ("test_callbacks.py", "BitFlippingEnv, IdentityEnv\n", "BitFlippingEnv, IdentityEnvBox\n"),
    ("test_callbacks.py", "IdentityEnv()", "IdentityEnvBox(eps=2.0)"),
    ("test_cnn.py", "discrete=model_class not in {SAC, TD3}", "discrete=False"),
    ("test_cnn.py", "discrete=True", "discrete=False"),
    ("test_dict_env.py", "= model_class not in [SAC, TD3, DDPG]", "= False"),
    ("test_dict_env.py", "BitFlippingEnv(n_bits=4)", "BitFlippingEnv(n_bits=4, continuous=True)"),
    ("test_logger.py", "self.action_space = spaces.Discrete(2)", BOX),
    ("test_vec_extract_dict_obs.py", "self.action_space = spaces.Discrete(2)", BOX),
    # Ten times slower, so that the test does not measure how fast the policy is.
    ("test_logger.py", "max_fps = 1000\n", "max_fps = 100\n"),
    # The custom policy must be one that the algorithm can train, the actions ones that it drew.
    ("test_gae.py", "(ActorCriticPolicy)", '(PPO.policy_aliases["MlpPolicy"])'),
    ("test_distributions.py", "values_1, _, _ =", OWN_ACTIONS),
    # A diffusion policy from scratch learns the same, in more steps and a smaller network.
    ("test_identity.py", "PPO: 1000,", "PPO: 10_000,"),
    ("test_identity.py", "n_epochs=4, seed=0)", "policy_kwargs=dict(net_arch=[64, 64]), seed=0)"),
    # Folders carry the name of the algorithm.
    ("test_tensorboard.py", "model_name.upper()", "MODEL_DICT[model_name][0].__name__"),
    # Advice about MlpPolicy on a GPU, and files written by Stable-Baselines3 < 1.7.
    ("test_run.py", GPU_ADVICE, "if False:"),
    ("test_save_load.py", "if model_class == A2C:", "if False:"),
    # Atari, which no test that runs here needs.
    ("test_utils.py", "import ale_py\n", ""),
    ("test_utils.py", "gym.register_envs(ale_py)", ""),
)

# Part of a test's name, and why the test makes no sense here.
A2C_TOO = "A2C, where the same test covers PPO"
DISCRETE = "about Discrete, MultiDiscrete or MultiBinary actions"
GSDE = "about gSDE, an exploration of Gaussian policies"
DESELECTED = {
    "test_identity.py::test_discrete": DISCRETE,
    "test_spaces.py::test_multidim_binary_not_supported": DISCRETE,
    "test_sde.py::": GSDE,
    "test_distributions.py::test_squashed_gaussian": GSDE,
    "test_save_load.py::test_save_load_policy[True-": GSDE,
    "test_distributions.py::test_get_distribution": "a chain has no SB3 `Distribution`",
    "test_tensorboard.py::test_tensorboard[a2c]": A2C_TOO,
    "test_tensorboard.py::test_tensorboard[sac]": "off-policy algorithm",
    "test_tensorboard.py::test_tensorboard[td3]": "off-policy algorithm",
    "test_logger.py::test_sb3_import_without_optional_deps": "imports SB3 a second time",
}
if importlib.util.find_spec("pygame") is None:
    DESELECTED["test_vec_envs.py::test_video_recorder"] = "needs pygame, which is not installed"
# A test's source that matches is about an on-policy algorithm. The last word is a fixture.
ABOUT_ON_POLICY = re.compile(r"\bPPO\b|\bA2C\b|\bdummy_model_distribution")


def give_box_actions() -> None:
    """Let `gym.make` return CartPole and Taxi with one real number per discrete action."""

    def make(creator: str, **kwargs: object) -> gym.Env:
        env = load_env_creator(creator)(**kwargs)
        assert isinstance(env, gym.Env) and isinstance(env.action_space, gym.spaces.Discrete)
        space = gym.spaces.Box(-1.0, 1.0, (int(env.action_space.n),))
        return gym.wrappers.TransformAction(env, lambda action: int(np.argmax(action)), space)

    for env_id in {"CartPole-v1", "Taxi-v3", "Taxi-v4"} & set(gym.registry):
        spec = gym.registry[env_id]
        assert isinstance(spec.entry_point, str)
        spec.entry_point = functools.partial(make, spec.entry_point)


def copy_tests(folder: Path) -> Path:
    """Put the patched tests, with the pytest settings beside them, into `folder`.

    :return: The folder that holds the tests.
    """
    if "SB3_TESTS" in os.environ:
        source = Path(os.environ["SB3_TESTS"]).resolve()
    else:
        version = stable_baselines3.__version__
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest"]
        what = ["--no-binary", "stable-baselines3", f"stable-baselines3=={version}"]
        subprocess.run([*pip, str(folder), *what], check=True)
        shutil.unpack_archive(next(folder.glob("*.tar.gz")), folder, filter="data")
        source = folder / f"stable_baselines3-{version}" / "tests"
    tests = folder / "tests"
    tests.mkdir()
    for file in sorted(source.glob("test_*.py")):
        text = file.read_text()
        for _, old, new in (patch for patch in PATCHES if patch[0] == file.name):
            if old not in text:
                raise ValueError(f"PATCHES: {file.name} does not contain {old!r}")
            text = text.replace(old, new)
        (tests / file.name).write_text(text)
    shutil.copy(source.parent / "pyproject.toml", folder)
    return tests


class Suite:
    """The pytest plugin: puts the algorithm in place, selects tests, reports at the end."""

    def __init__(self, algorithm: type[PPO], whole: bool) -> None:
        self.algorithm = algorithm
        self.whole = whole  # no pytest arguments, so that nothing else chooses among the tests
        self.deselected: Counter[str] = Counter()
        self.off_policy = {SAC, TD3, DDPG, DQN}
        # A2C stands for any on-policy algorithm in tests that do without PPO.
        short = {"n_steps": 5, "batch_size": 5, "normalize_advantage": False}
        init = functools.partialmethod(algorithm.__init__, **short)
        self.a2c = type("A2C", (algorithm,), {"__init__": init})
        vars(stable_baselines3).update(PPO=algorithm, A2C=self.a2c)

    def reason_against(self, item: pytest.Function, covered: set[str]) -> str | None:
        """Say why `item` is not to run; `covered` names the tests that have a variant for PPO."""
        classes = parameter_classes(item)
        source = inspect.getsource(item.function)
        if self.off_policy & classes:
            return "off-policy algorithm"
        if not ({self.algorithm, self.a2c} & classes or ABOUT_ON_POLICY.search(source)):
            return "not about on-policy algorithms"
        if self.a2c in classes and name_of(item) in covered:
            return A2C_TOO
        return next((why for part, why in DESELECTED.items() if part in item.nodeid), None)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Function]
    ) -> None:
        """Keep the tests that make sense."""
        covered = {name_of(item) for item in items if self.algorithm in parameter_classes(item)}
        reasons = {item: self.reason_against(item, covered) for item in items}
        stale = [part for part in DESELECTED if not any(part in item.nodeid for item in items)]
        if self.whole and stale:
            raise pytest.UsageError(f"DESELECTED names tests that do not exist: {stale}")
        self.deselected.update(reason for reason in reasons.values() if reason)
        config.hook.pytest_deselected(items=[item for item in items if reasons[item]])
        items[:] = [item for item in items if not reasons[item]]
        for item in items:
            assert getattr(item.module, "PPO", self.algorithm) is self.algorithm
        if self.whole and len(items) < AT_LEAST:
            raise pytest.UsageError(f"only {len(items)} tests left, expected {AT_LEAST} or more")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print how many tests ran, and why the others did not."""
        stats = terminalreporter.stats
        outcomes = ("passed", "failed", "error", "skipped")
        write = terminalreporter.write_line
        write(f"\nSB3 {stable_baselines3.__version__} with {self.algorithm.__name__} for PPO:")
        write("  " + ", ".join(f"{len(stats.get(name, ()))} {name}" for name in outcomes))
        for reason, number in self.deselected.most_common():
            write(f"  {number:4} not run: {reason}")


def parameter_classes(item: pytest.Function) -> set[type]:
    """Return the classes among the parameters of a test."""
    callspec = getattr(item, "callspec", None)
    values = callspec.params.values() if callspec else ()
    return {value for value in values if isinstance(value, type)}


def name_of(item: pytest.Function) -> str:
    """Return the file and the name of a test, without its parameters."""
    return item.nodeid.partition("[")[0]


def main() -> int:
    """Run the suite and return pytest's exit status, or `CANNOT_RUN`."""
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--algorithm", default="sb3_diffrl.diffusion_ppo:DiffusionPPO")
    options, pytest_arguments = parser.parse_known_args()
    module, _, name = options.algorithm.partition(":")
    algorithm = getattr(importlib.import_module(module), name)
    with tempfile.TemporaryDirectory() as folder:
        try:
            tests = copy_tests(Path(folder))
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"no tests of Stable-Baselines3, set SB3_TESTS: {error}", file=sys.stderr)
            return CANNOT_RUN
        os.chdir(folder)
        settings = ["-c", "pyproject.toml", "-p", "no:cacheprovider", "--tb=short", "-q"]
        arguments = [*settings, str(tests), *pytest_arguments]
        return pytest.main(arguments, plugins=[Suite(algorithm, not pytest_arguments)])


if __name__ in {"__main__", "__mp_main__"}:  # the second name is that in a SubprocVecEnv
    give_box_actions()
if __name__ == "__main__":
    sys.exit(main())
