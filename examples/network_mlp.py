"""The residual MLP, what it may predict, and the noise schedule that published policies use."""

import numpy as np
import torch as th

from sb3_diffrl import DiffusionPPO
from sb3_diffrl.envs.avoiding import AvoidingEnv, avoiding_demonstrations

th.set_num_threads(1)
demonstrations = avoiding_demonstrations(n_episodes=20, seed=0)

for prediction_type in ("epsilon", "sample", "v"):
    model = DiffusionPPO(
        "policy",
        AvoidingEnv(),
        policy_kwargs={
            "net_arch": [128, 128],
            "prediction_type": prediction_type,
            "noise_schedule": "squared_cosine_capped",
            "noise_levels": 20,
            "denoising_steps": 5,
        },
        seed=0,
        verbose=prediction_type == "epsilon",  # prints how many parameters each part has
    )
    model.pretrain(demonstrations, gradient_steps=250, warmup_steps=50)
    actions, _ = model.predict(np.asarray(demonstrations.observations))
    error = np.abs(actions - demonstrations.actions).mean()
    print(f"{prediction_type:>8}: mean distance to the demonstrated actions {error:.3f}")
