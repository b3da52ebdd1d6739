"""The quick part of `sb3_suite.py`, in a process of its own because it replaces SB3's PPO."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sb3_suite import CANNOT_RUN

QUICK = """
    test_save_load.py and not cnn or test_spaces.py or test_predict.py and not test_auto_wrap
    or test_ppo_warnings or test_gae_computation or test_consistency or test_tensorboard
    or test_vec_monitor_ppo or test_callbacks_can_cancel_runs or collect_rollouts
"""


def test_quick_part_of_sb3s_own_tests() -> None:
    command = [sys.executable, str(Path(__file__).with_name("sb3_suite.py"))]
    command += ["-k", " ".join(QUICK.split())]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    if process.returncode == CANNOT_RUN:
        pytest.skip(process.stderr)
    assert process.returncode == 0, process.stdout[-5000:] + process.stderr[-2000:]
