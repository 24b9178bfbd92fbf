"""One real server of the embedded model for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from engine_support.harness import Reference
from serve_support.server import Server, serving

from pilothouse.harbor.paths import model_dir


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="session")
def reference() -> Reference:
    """The embedded model in Hugging Face."""
    return Reference(model_dir())


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_dir())
