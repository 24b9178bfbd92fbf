"""Which requests' readings may wait for their end."""

from __future__ import annotations

from typing import Any, cast

import pytest
from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind

from pilothouse.api.plans import Ask
from pilothouse.api.session import Session
from pilothouse.core.serving import RequestSession
from pilothouse.engine.client import may_gather
from pilothouse.probing import Probe

FINAL, DELTA, CUMULATIVE = RequestOutputKind.FINAL_ONLY, RequestOutputKind.DELTA, RequestOutputKind.CUMULATIVE


def session(tokens: bool, given: bool = True) -> RequestSession:
    probe = cast(Probe, object())
    # Nothing else of a session is looked at here.
    return Session(Ask(probes=(probe,), tokens=tokens, reads_given=given), "/v1/completions", "m", cast(Any, None))


@pytest.mark.parametrize(
    ("kind", "tokens", "given", "sampling", "gathers"),
    [
        (FINAL, True, True, {}, True),
        (FINAL, True, True, {"logprobs": 1}, True),
        (FINAL, False, True, {"stop": ["."]}, False),
        (DELTA, False, True, {}, True),
        (DELTA, True, True, {}, False),
        (DELTA, False, True, {"logprobs": 0}, False),
        (DELTA, False, False, {"logprobs": 0}, False),
        (DELTA, False, True, {"stop": "x"}, False),
        (DELTA, False, True, {"stop_token_ids": [3]}, True),
        (CUMULATIVE, True, True, {}, False),
    ],
)
def test_readings_wait_where_nobody_looks_and_the_engine_ends_the_sequence(
    kind: RequestOutputKind, tokens: bool, given: bool, sampling: dict[str, Any], gathers: bool
) -> None:
    params = SamplingParams(output_kind=kind, **sampling)
    assert may_gather(session(tokens, given), params) is gathers
