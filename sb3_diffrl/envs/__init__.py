"""Tasks that ship with the package; importing this registers them with gymnasium."""

from gymnasium.envs.registration import register

register(
    id="sb3_diffrl/Avoiding-v0",
    entry_point="sb3_diffrl.envs.avoiding:AvoidingEnv",
    vector_entry_point="sb3_diffrl.envs.avoiding:AvoidingVectorEnv",
    max_episode_steps=120,
)
