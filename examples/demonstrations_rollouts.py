"""Record any policy in any vectorised environment, and imitate it."""

import numpy as np
from stable_baselines3.common.env_util import make_vec_env

from sb3_diffrl import Demonstrations, DiffusionMlpPolicy, DiffusionPPO


def controller(observations: np.ndarray) -> np.ndarray:
    """Damp the pendulum: actions for a batch of observations."""
    return np.clip(-2 * observations[:, 2:] - 4 * observations[:, 1:2], -2, 2)


def main() -> None:
    """Record 12 episodes in 4 environments, clone the controller, record the clone."""
    env = make_vec_env("Pendulum-v1", 4, seed=0)
    demonstrations = Demonstrations.from_rollouts(controller, env, 12, seed=0, progress_bar=True)
    print(f"{demonstrations}, mean return {demonstrations.returns.mean():.0f}")

    model = DiffusionPPO(DiffusionMlpPolicy, env, policy_kwargs={"net_arch": [64, 64]}, seed=0)
    model.pretrain(demonstrations, gradient_steps=500, progress_bar=True)
    clone = Demonstrations.from_rollouts(model, env, 4, seed=1)
    print(f"clone: {clone}, mean return {clone.returns.mean():.0f}")


if __name__ == "__main__":
    main()
