"""
A method of one's own in the benchmark: CrossQ of sb3-contrib, from scratch.

    sb3-diffrl bench --tasks avoiding --methods diffrl examples.benchmark_method.crossq --seeds 0

The function is handed the run (task, perturbation, seed, hyperparameters of DiffusionPPO for the
task) and, where the task has demonstrations, the pre-trained diffusion policy: ``prior.load()`` is
the model. What it returns is measured before, during and after ``learn``.
"""

from sb3_contrib import CrossQ

from sb3_diffrl.bench.runs import Run
from sb3_diffrl.bench.training import Prior


def crossq(run: Run, prior: Prior | None) -> CrossQ:
    """
    :param run: what is to be trained
    :param prior: not used
    :return: the model, untrained
    """
    return CrossQ("MlpPolicy", run.training_env(), seed=run.seed, device="cpu")
