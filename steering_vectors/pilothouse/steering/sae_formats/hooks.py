"""Which site the names of hooks mean; only the residual stream after a decoder block is one."""

import re

from pilothouse.core.errors import ArtefactError


def layer_of_hook(hook: object, where: str) -> int:
    """The site of a TransformerLens name: ``blocks.L.hook_resid_post`` is L, ``hook_resid_pre`` is L - 1.

    ArtefactError, beginning with `where`, for any other place in the model.
    """
    match = re.fullmatch(r"blocks\.([0-9]{1,6})\.hook_resid_(pre|post)", str(hook))
    if not match:
        raise ArtefactError(
            f"{where}: the SAE is at {hook!r}; only residual-stream SAEs (blocks.L.hook_resid_post) can steer"
        )
    block = int(match[1])
    if match[2] == "post":
        return block
    # The stream before block L is the stream after block L - 1.
    if block == 0:
        raise ArtefactError(f"{where}: {hook!r} is the embedding's output, before any site")
    return block - 1


def layer_of_module(module: object, where: str) -> int:
    """The site of a Hugging Face module's name such as ``model.layers.L``, perhaps with ``.output``.

    ArtefactError, beginning with `where`, unless it is a decoder block's output.
    """
    match = re.fullmatch(r"(?:[A-Za-z_]+\.)*(?:layers|h|blocks)\.([0-9]{1,6})(?:\.output)?", str(module))
    if not match:
        raise ArtefactError(f"{where} {module!r} is not the output of a decoder block")
    return int(match[1])
