"""How much memory the hooks take, by arithmetic over the engine's layout; a test holds it against the real modules."""

from collections.abc import Mapping

from pilothouse.core.config import EngineLayout

FLOAT, INT = 4, 8
N_NUMBERS = 9
"""Numbers of a step of a chain; `engine.chains` has the same."""
MAX_TOKENS = 8192 + 64
"""Tokens of the largest batch at vLLM's defaults on a large GPU, and the margin that the worker adds."""


def buffer_bytes(
    layout: EngineLayout, d_model: int, n_sites: int, bytes_per_number: int, max_tokens: int = MAX_TOKENS
) -> Mapping[str, int]:
    """Bytes on the device by purpose: rows of edits, chains and readouts at all sites, and what a step's tokens have.

    bytes_per_number: of the model's own dtype.
    """
    steps = layout.n_chains * layout.chain_steps
    a_step = d_model * (FLOAT + bytes_per_number) + N_NUMBERS * FLOAT + INT
    a_token = 2 * INT + FLOAT * (layout.readouts + layout.chain_steps)
    return {
        "edits": n_sites * layout.n_rows * d_model * bytes_per_number,
        "chains": n_sites * steps * a_step,
        "readouts": n_sites * layout.readouts * d_model * FLOAT,
        "tokens": max_tokens * a_token,
    }
