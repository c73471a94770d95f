"""CUDA graphs: the token loop as one launch instead of some hundred, each of which costs the GPU more than its work."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch

Function = Callable[..., Sequence[torch.Tensor]]


@dataclass(frozen=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    inputs: Sequence[torch.Tensor]
    outputs: Sequence[torch.Tensor]


class Graphs:
    """Functions of tensors `[B, ...]`, captured once for each power of two that B fits into; not copied or pickled."""

    def __init__(self) -> None:
        self._captured: dict[Hashable, _Captured] = {}

    def __reduce__(self) -> tuple[type[Graphs], tuple[()]]:
        return Graphs, ()

    def run(self, key: Hashable, function: Function, *inputs: torch.Tensor) -> list[torch.Tensor]:
        """What `function(*inputs)` returns.

        Args:
            key: of everything else that the result depends on, the addresses of weights included.
            function: computes each row from that row alone, and nothing on the CPU.
            inputs: on the GPU.
        """
        rows = len(inputs[0])
        room = 1 << (rows - 1).bit_length()
        if (key, room) not in self._captured:
            self._captured[key, room] = _capture(function, [x.new_zeros((room, *x.shape[1:])) for x in inputs])
        captured = self._captured[key, room]
        for place, given in zip(captured.inputs, inputs, strict=True):
            place[:rows].copy_(given)
        captured.graph.replay()
        return [result[:rows].clone() for result in captured.outputs]


def _capture(function: Function, inputs: Sequence[torch.Tensor]) -> _Captured:
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # libraries set themselves up in the first calls, which cannot be captured
        for _ in range(3):
            function(*inputs)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = function(*inputs)
    return _Captured(graph, inputs, outputs)
