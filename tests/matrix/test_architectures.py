"""Every family of decoders that vLLM serves, as a tiny random model, against Hugging Face in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from matrix_support.architectures import ROWS
from matrix_support.architectures_battery import CHECKS, Gathered
from matrix_support.architectures_worker import Workers

pytestmark = pytest.mark.engine

SERVED = [pytest.param(r.name, marks=[] if r.sample else pytest.mark.slow) for r in ROWS if not r.refusal]
REFUSED = [pytest.param(r.name, marks=pytest.mark.slow) for r in ROWS if r.refusal]


@pytest.fixture(scope="module")
def workers(request: pytest.FixtureRequest) -> Iterator[Workers]:
    """They begin with all rows of this run at once."""
    chosen = [item for item in request.session.items if item.path == request.path]
    running = Workers(list(dict.fromkeys(item.callspec.params["row"] for item in chosen)))  # type: ignore[attr-defined]
    yield running
    running.close()


@pytest.mark.parametrize("column", list(CHECKS))
@pytest.mark.parametrize("row", SERVED)
@pytest.mark.cell("architectures", "{row}", "{column}")
def test_an_architecture_is_read_and_steered(row: str, column: str, workers: Workers) -> None:
    answer = workers.answer(row)
    if isinstance(answer, str):
        pytest.skip(f"vLLM: {answer}")
    assert isinstance(answer, Gathered)
    CHECKS[column](answer)


@pytest.mark.parametrize("column", list(CHECKS))
@pytest.mark.parametrize("row", REFUSED)
@pytest.mark.cell("architectures", "{row}", "{column}")
def test_what_has_no_place_for_sites_is_refused(
    row: str, column: str, workers: Workers, refused: Callable[[str], None]
) -> None:
    said = workers.answer(row)
    assert isinstance(said, str), "it was served"
    refused(said)
