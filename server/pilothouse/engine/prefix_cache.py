"""Prefix-cache keys that tell edited blocks from others.

Seam: `generate_block_hash_extra_keys` of vllm/v1/core/kv_cache_utils.py, which two more modules import by name. To the
extra keys of every block that an edit touches comes one tagged pair for each such edit: its digest with the first and
the last edited offset inside the block. The digest alone would confuse a plan that edits other positions of the same
tokens (an answer generated under steering, sent back as part of the next prompt). Blocks before the first edited
position keep vLLM's own keys and are shared with everyone; later blocks inherit the difference through the hash chain.
"""

from collections.abc import Callable
from typing import Any

from vllm.v1.core import block_pool, kv_cache_utils
from vllm.v1.request import Request
from vllm.v1.simple_kv_offload import manager as offload_manager

from pilothouse.core.messages import PLAN_KEY, CacheSpan, WirePlan, plan_decoder

EDIT_TAG = "pilothouse_edit"
PLAN_ATTRIBUTE = "pilothouse_plan"
CALLERS = (kv_cache_utils, block_pool, offload_manager)
FUNCTION = "generate_block_hash_extra_keys"

ExtraKeys = tuple[tuple[Any, ...] | None, int]


def plan_of(request: Request) -> WirePlan | None:
    """The plan that came with a request, decoded once."""
    if hasattr(request, PLAN_ATTRIBUTE):
        return getattr(request, PLAN_ATTRIBUTE)  # type: ignore[no-any-return]
    params = request.sampling_params
    raw = params.extra_args.get(PLAN_KEY) if params is not None and params.extra_args else None
    plan = plan_decoder.decode(raw) if raw is not None else None
    setattr(request, PLAN_ATTRIBUTE, plan)
    return plan


def edit_keys(spans: tuple[CacheSpan, ...], start: int, end: int) -> tuple[Any, ...]:
    """The pairs to add for the block of positions [start, end)."""
    return tuple(
        (EDIT_TAG, (span.edit, max(span.start, start) - start, min(span.stop, end) - 1 - start))
        for span in spans
        if span.start < end and start < span.stop
    )


def with_edit_keys(original: Callable[[Request, int, int, int], ExtraKeys]) -> Callable[..., ExtraKeys]:
    """`original` with the keys of the request's edits appended."""

    def generate(request: Request, start_token_idx: int, end_token_idx: int, start_mm_idx: int) -> ExtraKeys:
        keys, next_mm_idx = original(request, start_token_idx, end_token_idx, start_mm_idx)
        plan = plan_of(request)
        if plan is None or not plan.cache:
            return keys, next_mm_idx
        ours = edit_keys(plan.cache, start_token_idx, end_token_idx)
        return ((*(keys or ()), *ours) or None), next_mm_idx

    generate.pilothouse_original = original  # type: ignore[attr-defined]
    return generate


def install_edit_keys() -> None:
    """Replace the function wherever vLLM looks it up; idempotent."""
    original = getattr(kv_cache_utils, FUNCTION)
    if hasattr(original, "pilothouse_original"):
        return
    replacement = with_edit_keys(original)
    for module in CALLERS:
        setattr(module, FUNCTION, replacement)
