"""Tasks that ship with the package; importing this registers them with gymnasium."""

from gymnasium.envs.registration import register

register(
    id="sb3_diffrl/Avoiding-v0",
    entry_point="sb3_diffrl.envs.avoiding:AvoidingEnv",
    vector_entry_point="sb3_diffrl.envs.avoiding:AvoidingVectorEnv",
    max_episode_steps=120,
)

# The form that is displaced anew in every episode, by a name of its own for tools that know tasks
# by their names.
register(
    id="sb3_diffrl/AvoidingPerturbed-v0",
    entry_point="sb3_diffrl.envs.avoiding:AvoidingEnv",
    vector_entry_point="sb3_diffrl.envs.avoiding:AvoidingVectorEnv",
    max_episode_steps=120,
    kwargs={"perturbation": "episode"},
)

# Needs Meta-World: pip install 'sb3-diffrl[metaworld]'
register(
    id="sb3_diffrl/MetaWorld-v0",
    entry_point="sb3_diffrl.envs.metaworld:make_metaworld",
    max_episode_steps=250,
)
