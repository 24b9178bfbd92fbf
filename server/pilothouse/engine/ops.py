"""What the compiled graph calls as a whole on a CPU, where a call costs less than what the compiler makes of it.

The compiler turns writes to the first rows of a buffer into copies of all of it, and the code of a chain, repeated at
every layer, triples the time that it takes for a graph of 28 layers. On a GPU calls would break up what is fused into
one kernel, so there all is traced.

They are given the parts of the stream, not their sum: a sum that only a call reads is a kernel of its own to the
compiler, and Inductor (torch 2.13) fuses such a one with kernels that run before vLLM's matrix product has written the
part (it forgets, where it gives the sum other loops, that the product writes into a buffer that was there).
"""

from collections.abc import Callable
from typing import Any

import torch

_library = torch.library.Library("pilothouse", "FRAGMENT")


def define(schema: str, function: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Let graphs call `function` as `torch.ops.pilothouse`'s operation of that schema. fake: gives a tensor like its
    answer."""
    name = schema.partition("(")[0]
    _library.define(schema)
    _library.impl(name, function, "CPU")
    torch.library.register_fake(f"pilothouse::{name}", fake, lib=_library)


def called(tensor: torch.Tensor) -> bool:
    """Whether the graph that is being compiled calls them for `tensor`; what runs as it is written never does."""
    return torch.compiler.is_compiling() and tensor.device.type == "cpu"


def total(parts: list[torch.Tensor]) -> torch.Tensor:
    """The stream whose parts these are, in float32."""
    stream = parts[0].float()
    for part in parts[1:]:
        stream = stream + part.float()
    return stream
