"""What all tests share: one thread each, and a known state of the global random generators."""

import random

import numpy as np
import pytest
import torch as th

th.set_num_threads(1)


@pytest.fixture(autouse=True)
def known_random_state() -> None:
    random.seed(0)
    np.random.seed(0)
    th.manual_seed(0)
