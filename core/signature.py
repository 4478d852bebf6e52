"""What an exported network takes and returns.

Axes are written as ONNX writes them, a number where the length is fixed and a name where it is
free: (N, 16, Y, X). N is the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Axes = tuple[int | str, ...]
LEAST_FACTOR = 2  # a length of one multiple becomes 1 inside the network, which is traced apart


@dataclass(frozen=True)
class Input:
    """One input of an exported network.

    Attributes:
        name: What it is called in the file.
        dtype: Its type.
        axes: Its axes, N first; () for a scalar.
        low: Least value it is checked with, of those that make sense.
        high: Largest such value.
    """

    name: str
    dtype: torch.dtype
    axes: Axes
    low: float
    high: float

    def sample(self, lengths: Mapping[str, int], generator: torch.Generator) -> Tensor:
        """Return random values, uniform in blocks of 2**n along each axis of sample n.

        White noise alone would say little: most of it is averaged away inside a network.

        Args:
            lengths: Of the free axes.
            generator: On the CPU.
        """
        shape = [lengths[axis] if isinstance(axis, str) else axis for axis in self.axes]
        values = torch.rand(shape, generator=generator) * (self.high - self.low) + self.low
        if shape:
            for n in range(shape[0]):
                for axis in range(1, len(shape)):
                    block = torch.arange(shape[axis]) // 2**n
                    values[n] = values[n].index_select(axis - 1, block)
        return values.to(self.dtype)


@dataclass(frozen=True)
class Signature:
    """All inputs of an exported network, and its output, float32.

    Attributes:
        inputs: In the order of its arguments.
        output: Name of the output.
        output_axes: Axes of the output.
        multiples: For each free axis but N, the number its length is a multiple of; it is at least
            `LEAST_FACTOR` times that.
    """

    inputs: tuple[Input, ...]
    output: str
    output_axes: Axes
    multiples: Mapping[str, int] = field(default_factory=dict)

    def sample(self, batch: int, factors: Sequence[int]) -> tuple[Tensor, ...]:
        """Return random inputs, seeded with `batch`.

        Args:
            batch: N.
            factors: Length of each further free axis, in multiples. Example: with 16 for each of
                Z, Y and X, factors (2, 3, 4) give lengths (32, 48, 64).
        """
        lengths = {
            axis: multiple * factor
            for (axis, multiple), factor in zip(self.multiples.items(), factors, strict=False)
        }
        generator = torch.Generator().manual_seed(batch)
        return tuple(one.sample({"N": batch, **lengths}, generator) for one in self.inputs)

    def describe(self) -> dict[str, Any]:
        """Return this as JSON values, for those who use the file."""
        inputs = [
            {
                "name": one.name,
                "dtype": str(one.dtype).removeprefix("torch."),
                "axes": list(one.axes),
                "checked_range": [one.low, one.high],
            }
            for one in self.inputs
        ]
        output = {"name": self.output, "dtype": "float32", "axes": list(self.output_axes)}
        free = {
            axis: {"multiple_of": multiple, "at_least": LEAST_FACTOR * multiple}
            for axis, multiple in self.multiples.items()
        }
        return {"inputs": inputs, "output": output, "free_axes": free}
