"""Precision of matrix products in training."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch as th

PRECISIONS = ("float32", "tf32", "bfloat16")


def check_precision(name: str) -> None:
    """
    :param name: the precision asked for
    :raises ValueError: for one that is not known
    """
    if name not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {name!r}.")


@contextmanager
def precision(name: str, device: th.device) -> Iterator[None]:
    """
    Compute matrix products in a precision; where gradients are computed, inside as well. To be left
    before the weights change, for their casts are kept until then.

    :param name: ``"float32"``; ``"tf32"``, which acts on CUDA alone; ``"bfloat16"``, autocast
    :param device: where the networks are
    """
    if name == "bfloat16":
        with th.autocast(device.type, th.bfloat16):
            yield
    elif name == "tf32" and device.type == "cuda":
        before = th.get_float32_matmul_precision()
        th.set_float32_matmul_precision("high")
        try:
            yield
        finally:
            th.set_float32_matmul_precision(before)
    else:
        yield
