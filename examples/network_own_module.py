"""A network of your own, named in policy_kwargs, a YAML file of RL Zoo or on the command line."""

import sys
from pathlib import Path

import numpy as np
import torch as th
from torch import nn

from sb3_diffrl import DiffusionPPO
from sb3_diffrl.envs.avoiding import AvoidingEnv, avoiding_demonstrations


class FourierDenoiser(nn.Module):
    """Any module will do that is built and called like this."""

    def __init__(
        self,
        features_dim: int,
        action_dim: int,
        noise_levels: int,
        net_arch: list[int],
        activation_fn: type[nn.Module],
        n_frequencies: int = 4,  # from denoiser_kwargs
    ):
        super().__init__()
        self.noise_levels = noise_levels
        self.n_frequencies = n_frequencies
        width, n_in = net_arch[0], features_dim + action_dim + 2 * n_frequencies
        self.layers = nn.Sequential(
            *(nn.Linear(n_in, width), activation_fn(), nn.Linear(width, width), activation_fn()),
            nn.Linear(width, action_dim),
        )

    def forward(self, noisy: th.Tensor, levels: th.Tensor, features: th.Tensor) -> th.Tensor:
        """Rows of noisy actions, their noise levels and features of the observations."""
        frequencies = th.arange(1, self.n_frequencies + 1, device=noisy.device) * np.pi
        angles = levels.unsqueeze(1) / self.noise_levels * frequencies
        return self.layers(th.cat([noisy, features, angles.sin(), angles.cos()], dim=1))


if __name__ == "__main__":
    th.set_num_threads(1)
    sys.path.append(str(Path(__file__).parent))  # where the name below is found
    model = DiffusionPPO(
        "policy",
        AvoidingEnv(),
        policy_kwargs={
            "denoiser_class": "network_own_module.FourierDenoiser",
            "denoiser_kwargs": {"n_frequencies": 6},
        },
        seed=0,
        verbose=1,
    )
    demonstrations = avoiding_demonstrations(n_episodes=40, seed=0)
    model.pretrain(demonstrations, gradient_steps=300, warmup_steps=50)
    actions, _ = model.predict(np.asarray(demonstrations.observations))
    error = np.abs(actions - demonstrations.actions).mean()
    print(f"mean distance to the demonstrated actions {error:.3f}")
