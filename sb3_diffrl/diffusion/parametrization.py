"""
What the network predicts, and which of the noise levels the sampler visits.

With ``signal = sqrt(alpha_bar_t)`` and ``noise = sqrt(1 - alpha_bar_t)`` every prediction type is a
combination ``p a_0 + q eps`` of clean action and noise. As the noisy action is another, ``signal
a_0 + noise eps``, the two give the clean action: ``a_0 = (noise output - q a_t) / (p noise - q
signal)``.
"""

from collections.abc import Callable

import torch as th

# By name: (p, q) of signal and noise.
PREDICTION_TYPES: dict[str, Callable[[th.Tensor, th.Tensor], tuple[th.Tensor, th.Tensor]]] = {
    # The noise (Ho et al. 2020, eq. 14).
    "epsilon": lambda signal, noise: (th.zeros_like(signal), th.ones_like(noise)),
    # The clean action (Ho et al. 2020, section 3.2).
    "sample": lambda signal, noise: (th.ones_like(signal), th.zeros_like(noise)),
    # The velocity (Salimans and Ho 2022, section 4).
    "v": lambda signal, noise: (-noise, signal),
}

# By name: the K of the levels 1 to T that are visited, from noisy to clean, as diffusers' option of
# the same name chooses them, whose timestep t - 1 is level t.
TIMESTEP_SPACINGS: dict[str, Callable[[int, int], th.Tensor]] = {
    # Starts at T.
    "trailing": lambda n, k: th.linspace(n, 0, k + 1)[:-1].round().long(),
    # Ends at 1, in equal whole steps.
    "leading": lambda n, k: (th.arange(k) * (n // k) + 1).flip(0),
    # From T to 1, both included.
    "linspace": lambda n, k: th.linspace(0, n - 1, k).round().long().flip(0) + 1,
}
