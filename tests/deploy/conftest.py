from __future__ import annotations

from pathlib import Path

import pytest
from deploy_support.prometheus import Unavailable, binaries


@pytest.fixture(scope="session")
def programs() -> Path:
    """The folder of `prometheus` and `promtool`."""
    try:
        return binaries()
    except Unavailable as missing:
        pytest.skip(str(missing))
