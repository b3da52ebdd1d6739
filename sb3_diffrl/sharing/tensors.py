"""Safetensors files that may come from anyone, checked before they are read."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch as th

from sb3_diffrl.sharing.checks import short

MAX_HEADER_BYTES = 2**20

Spec = tuple[tuple[int, ...], th.dtype]  # shape and dtype of a tensor
SAFETENSORS_DTYPES = {
    th.float64: "F64",
    th.float32: "F32",
    th.float16: "F16",
    th.bfloat16: "BF16",
    th.int64: "I64",
    th.int32: "I32",
    th.int16: "I16",
    th.int8: "I8",
    th.uint8: "U8",
    th.bool: "BOOL",
}

Header = Mapping[str, tuple[tuple[int, ...], str]]


def as_header(spec: Spec) -> tuple[tuple[int, ...], str]:
    """:return: shape and dtype as a header has them"""
    shape, dtype = spec
    return shape, SAFETENSORS_DTYPES.get(dtype, str(dtype))


def check_header(expected: Mapping[str, Spec], found: Header) -> None:
    """
    :param expected: shapes and dtypes by name
    :param found: shapes and dtypes, as safetensors calls them, by name
    :raises ValueError: naming the first tensor that is missing, too many or of another kind
    """
    for name in sorted(expected.keys() - found.keys()):
        raise ValueError(f"the tensor {name!r} is missing")
    for name in sorted(found.keys() - expected.keys()):
        raise ValueError(f"the tensor {short(name)} does not belong to this model")
    for name, spec in expected.items():
        if found[name] != as_header(spec):
            (shape, dtype), (was_shape, was_dtype) = as_header(spec), found[name]
            raise ValueError(
                f"the tensor {name!r} is {was_dtype} of shape {was_shape}, "
                f"expected {dtype} of shape {shape}"
            )


def read_tensors(path: Path, expected: Mapping[str, Spec]) -> Callable[[], dict[str, th.Tensor]]:
    """
    Compare the header of a file with what it must hold.

    :param path: a safetensors file that may come from anyone
    :param expected: shapes and dtypes by name
    :return: a function that reads the tensors
    :raises ValueError: where the file is no such file or holds other tensors
    """
    from safetensors import SafetensorError, safe_open

    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"a header of {length} bytes, at most {MAX_HEADER_BYTES} allowed")
    try:
        with safe_open(path, framework="pt") as opened:
            parts = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 -- no mapping
            found = {
                name: (tuple(part.get_shape()), part.get_dtype()) for name, part in parts.items()
            }
    except (SafetensorError, OSError) as error:
        raise ValueError(f"not a sound safetensors file: {error}") from error
    check_header(expected, found)

    def read() -> dict[str, th.Tensor]:
        from safetensors.torch import load_file

        return load_file(path)

    return read


def spec_of(tensor: th.Tensor) -> Spec:
    """:return: shape and dtype of the tensor"""
    return tuple(tensor.shape), tensor.dtype
