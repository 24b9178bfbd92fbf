"""One real server of the embedded model for all tests that ask for it, whichever folder they are in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from engine_support.harness import Reference
    from serve_support.server import Server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Harbor with its own artefacts and those of the tests; it keeps the responses of vLLM's Responses API."""
    # Imported here: other folders do without vLLM.
    from serve_support.server import serving

    with serving(tmp_path_factory.mktemp("server"), VLLM_ENABLE_RESPONSES_API_STORE="1") as running:
        yield running


@pytest.fixture(scope="session")
def reference() -> Reference:
    """The embedded model in Hugging Face."""
    from engine_support.harness import Reference

    from pilothouse.harbor.paths import model_dir

    return Reference(model_dir())


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    from pilothouse.harbor.paths import model_dir

    return AutoTokenizer.from_pretrained(model_dir())
