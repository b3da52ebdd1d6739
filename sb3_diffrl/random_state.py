"""The state of the global random generators, which SB3's algorithms draw from."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch as th


def get_random_state() -> dict[str, Any]:
    """
    :return: states of Python's, NumPy's and torch's global generators, CUDA's where there is one
    """
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002 -- the one SB3 draws from
        "torch": th.get_rng_state(),
        "cuda": th.cuda.get_rng_state_all() if th.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """
    :param state: from :func:`get_random_state`; CUDA's part is ignored where the devices differ
    """
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002 -- as above
    th.set_rng_state(state["torch"])
    if len(state["cuda"]) == th.cuda.device_count():
        th.cuda.set_rng_state_all(state["cuda"])


@contextmanager
def preserved_random_state(seed: int | None = None) -> Iterator[None]:
    """
    Draws inside leave no trace outside.

    :param seed: seed of NumPy and torch inside, if given
    """
    state = get_random_state()
    try:
        if seed is not None:
            np.random.seed(seed)  # noqa: NPY002 -- as above
            th.manual_seed(seed)
        yield
    finally:
        set_random_state(state)
