"""Which parameters of an actor are trained."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn


def last_layers(network: nn.Module, number: int) -> list[str]:
    """
    :param network: whose layers follow one another in the order in which they were made; lists
        count entry by entry
    :param number: how many
    :return: names of the last of them
    """
    layers: list[str] = []
    for name, child in network.named_children():
        entries = child.named_children() if isinstance(child, nn.ModuleList | nn.Sequential) else []
        parts = [(f"{name}.{entry}", part) for entry, part in entries] or [(name, child)]
        layers += [name for name, part in parts if any(True for _ in part.parameters())]
    if len(layers) == 1:  # all in one module
        inner = last_layers(network.get_submodule(layers[0]), number)
        layers = [f"{layers[0]}.{name}" for name in inner] or layers
    return layers[-number:] if number > 0 else []


def choose_parameters(
    actor: nn.Module, chosen: int | str | Sequence[str] | None, without: str | None = None
) -> list[str]:
    """
    :param actor: has a ``denoiser``
    :param chosen: number of last layers of the denoiser, or patterns of names; None for all
    :param without: name of a module to leave out
    :return: names of the parameters
    :raises ValueError: where nothing is left, naming what there is
    """
    names = [
        name
        for name, _ in actor.named_parameters()
        if without is None or not name.startswith(f"{without}.")
    ]
    if chosen is None:
        return names
    if isinstance(chosen, int):
        layers = last_layers(actor.get_submodule("denoiser"), chosen)
        patterns: Sequence[str] = [f"denoiser.{layer}.*" for layer in layers]
    else:
        patterns = [chosen] if isinstance(chosen, str) else chosen
    matching = [name for name in names if any(fnmatchcase(name, each) for each in patterns)]
    if not matching:
        raise ValueError(
            f"finetuned_layers={chosen!r} leaves nothing to train. Expected a number of at least "
            f"1, or patterns of the names {', '.join(names)}."
        )
    return matching
