"""Functions of tensors replayed as CUDA graphs: one launch instead of one per operation."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch as th
from torch.utils._pytree import tree_map


class Captured(NamedTuple):
    """
    A graph with the memory that it reads and writes.

    :param graph: what is replayed
    :param inputs: tensors to fill before
    :param outputs: whatever the function returned, to be copied after
    """

    graph: th.cuda.CUDAGraph
    inputs: list[th.Tensor]
    outputs: Any


class CudaGraphs:
    """
    The graphs of a function, one for each key and each shape of its arguments.

    A graph reads the memory of the weights that were there when it was captured, and so follows
    changes in place, as optimizers and ``load_state_dict`` make them. Whatever replaces that memory
    belongs into the key.

    :param capacity: number of graphs kept, the least recently used leaving first
    """

    def __init__(self, capacity: int = 8):
        self.capacity = capacity
        self._captured: OrderedDict[Hashable, Captured] = OrderedDict()

    def __len__(self) -> int:
        return len(self._captured)

    def __reduce__(self) -> Any:
        return CudaGraphs, (self.capacity,)  # copies and files start without graphs

    def __call__(
        self, function: Callable[..., Any], inputs: Sequence[th.Tensor], key: Hashable = None
    ) -> Any:
        """
        :param function: launches work on the device and reads nothing back; the same for one key
        :param inputs: its arguments, on one CUDA device
        :param key: what else the work depends on
        :return: copies of what the function returns: tensors, or lists and tuples of them
        """
        precision = th.is_autocast_enabled("cuda"), th.get_float32_matmul_precision()
        shapes = tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in inputs)
        key = (key, precision, shapes)
        if key not in self._captured:
            self._captured[key] = capture(function, inputs)
            if len(self) > self.capacity:
                self._captured.popitem(last=False)
        self._captured.move_to_end(key)
        captured = self._captured[key]
        for static, given in zip(captured.inputs, inputs, strict=True):
            static.copy_(given)
        captured.graph.replay()
        return tree_map(th.clone, captured.outputs)


def capture(function: Callable[..., Any], inputs: Sequence[th.Tensor]) -> Captured:
    """
    :param function: see :class:`CudaGraphs`
    :param inputs: its arguments
    :return: the graph and its memory
    """
    static = [tensor.clone() for tensor in inputs]
    # Cached casts of the weights would be taken for constants.
    precision = th.autocast(
        "cuda",
        dtype=th.get_autocast_dtype("cuda"),
        enabled=th.is_autocast_enabled("cuda"),
        cache_enabled=False,
    )
    with th.cuda.device(static[0].device), th.no_grad(), precision:
        side = th.cuda.Stream()
        side.wait_stream(th.cuda.current_stream())
        with th.cuda.stream(side):  # libraries set themselves up outside of the capture
            for _ in range(3):
                function(*static)
        th.cuda.current_stream().wait_stream(side)
        graph = th.cuda.CUDAGraph()
        with th.cuda.graph(graph):
            outputs = function(*static)
    return Captured(graph, static, outputs)
