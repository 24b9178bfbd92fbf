"""Configuration, frozen once the server starts.

`EngineLayout` fixes the shapes inside the compiled graph, so it is part of the key of vLLM's compile cache.
`ServerConfig` is the API process's own and may change from start to start without recompiling anything.
"""

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from pilothouse.core.errors import StartupError

LAYOUT_KEY = "pilothouse"
CONFIG_ENV = "PILOTHOUSE_CONFIG"
LAYOUT_VERSION = 3


@dataclass(frozen=True)
class EngineLayout:
    """Shapes of the hooks: which layers have a site, how many distinct plans and probes run at once.

    rows: distinct combinations of edits in one batch, of all plans together; rows_per_plan: of those, how many one
    plan may have over its positions; chain_steps: edits that one plan may apply one after another at a token,
    beside those that are mere sums (0: only these are compiled in); chains: distinct plans with such edits in one
    batch; readouts: distinct probes at once; capture: keep the whole stream of every site (offline only).
    """

    sites: tuple[int, ...] | None = None
    rows: int = 128
    rows_per_plan: int = 8
    chains: int = 32
    chain_steps: int = 4
    readouts: int = 16
    capture: bool = False
    version: int = LAYOUT_VERSION

    def __post_init__(self) -> None:
        for name in ("rows", "rows_per_plan", "chains", "readouts"):
            if getattr(self, name) < 1:
                raise StartupError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.rows < self.rows_per_plan:
            raise StartupError(f"{self.rows} rows do not hold a plan of {self.rows_per_plan}")
        if self.chain_steps < 0:
            raise StartupError(f"chain_steps must be at least 0, not {self.chain_steps}")

    @classmethod
    def rows_for(cls, max_plans: int) -> int:
        """Rows for so many distinct plans at once: nearly all have one combination of edits, few more than two."""
        if max_plans < 1:
            raise StartupError(f"max_plans must be at least 1, not {max_plans}")
        return max(2 * max_plans, cls.rows_per_plan)

    @property
    def n_rows(self) -> int:
        """Rows of an edit bank: row 0 is the exact no-op."""
        return 1 + self.rows

    @property
    def n_chains(self) -> int:
        """Chains of a bank: chain 0 changes nothing, and is all there is where no steps are compiled in."""
        return 1 + self.chains if self.chain_steps else 1

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Self:
        _reject_unknown(cls, raw)
        sites = raw.get("sites")
        return cls(**{**raw, "sites": None if sites is None else tuple(sites)})


@dataclass(frozen=True)
class Limits:
    """What one request may ask for; shown by /v1/capabilities.

    max_strength: how far the edits of a request may push the stream at one layer, in lengths of the stream there; None
    for no limit.
    """

    max_edits: int = 8
    max_strength: float | None = None
    max_inline_bytes: int = 4 * 1024 * 1024
    max_sae_bytes: int = 2 * 1024 * 1024 * 1024
    max_steering_names_in_label: int = 3
    adhoc_cache_bytes: int = 256 * 1024 * 1024

    def __post_init__(self) -> None:
        if self.max_edits < 0:
            raise StartupError(f"max_edits must be at least 0, not {self.max_edits}")
        if self.max_strength is not None and not 0 <= self.max_strength < math.inf:
            raise StartupError(f"max_strength must be at least 0, not {self.max_strength}")


@dataclass(frozen=True)
class RecordsConfig:
    """Where records of responses are kept beyond memory. url: SQLAlchemy's of the database, None for nowhere; max_days,
    max_mb: what is older, or too much, is deleted, the oldest first; text: whether prompts and completions are kept;
    redact: `module:function` that is given such texts before they are."""

    url: str | None = None
    max_days: float = 30.0
    max_mb: float = 1024.0
    text: bool = False
    redact: str | None = None

    def __post_init__(self) -> None:
        for name in ("max_days", "max_mb"):
            if not 0 < getattr(self, name) < math.inf:
                raise StartupError(f"{name} of records must be more than 0, not {getattr(self, name)}")
        if self.redact is not None and not self.text:
            raise StartupError("a redaction hook has nothing to redact unless records keep texts")


@dataclass(frozen=True)
class ServerConfig:
    """What the API process loads and allows. vectors, probes, saes: places; presets: a file of named combinations of
    steering and probes; monitors: a file of named SAE features to be watched like probes; uploads: a folder that keeps
    what is uploaded and deleted, None to forget it with the process; reload_seconds: how often to look for changes in
    all places, 0 for never; max_results: records of responses that are kept in memory, 0 for none; self_test: whether
    steering and reading are held against a reference before the first request; reader_key: reads records, beside the
    admin key; request_log: file of one JSON line a request, `-` for the standard error stream; otlp_endpoint: where
    spans go."""

    vectors: tuple[str, ...] = ()
    probes: tuple[str, ...] = ()
    saes: tuple[str, ...] = ()
    default_probes: tuple[str, ...] = ()
    presets: str | None = None
    monitors: str | None = None
    uploads: str | None = None
    reload_seconds: float = 0.0
    admin_key: str | None = None
    limits: Limits = Limits()
    max_results: int = 10_000
    self_test: bool = True
    reader_key: str | None = None
    records: RecordsConfig = RecordsConfig()
    request_log: str | None = None
    otlp_endpoint: str | None = None

    def __post_init__(self) -> None:
        for what, key in (("an admin key", self.admin_key), ("a reader key", self.reader_key)):
            if key is not None and (not key or key != key.strip()):
                raise StartupError(f"{what} must not be empty, nor begin or end with a blank")
        if self.reader_key is not None and self.reader_key == self.admin_key:
            raise StartupError("the reader key must not be the admin key: it reads records, and nothing else")
        if self.max_results < 0:
            raise StartupError(f"max_results must be at least 0, not {self.max_results}")
        if not 0 <= self.reload_seconds < math.inf:
            raise StartupError(f"reload_seconds must be at least 0, not {self.reload_seconds}")

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        raw = json.loads(text)
        _reject_unknown(cls, raw)
        lists = {k: tuple(raw.get(k, ())) for k in ("vectors", "probes", "saes", "default_probes")}
        records = RecordsConfig(**raw.get("records", {}))
        return cls(**{**raw, **lists, "limits": Limits(**raw.get("limits", {})), "records": records})

    @classmethod
    def from_environment(cls) -> Self:
        """The configuration that `pilothouse serve` left for the API process; StartupError when there is none."""
        text = os.environ.get(CONFIG_ENV)
        if text is None:
            raise StartupError("no Pilothouse configuration found: start the server with `pilothouse serve`")
        return cls.from_json(text)


def _reject_unknown(cls: type, raw: Mapping[str, Any]) -> None:
    known = {f.name for f in dataclasses.fields(cls)}
    if unknown := sorted(set(raw) - known):
        raise StartupError(f"unknown configuration keys: {', '.join(unknown)}")
