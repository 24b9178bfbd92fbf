"""What steering and reading cost, whether everything is scored and recorded, and how vLLM does."""

from typing import Any

from dashboards import panels, promql
from dashboards.frame import MODEL, PROBE, Section, board
from dashboards.promql import PROBE as PROBES

UID = "pilothouse-health"
BY_PROBE = ("model_name", "probe")
SCORED, EXPECTED = "pilothouse_probe_tokens_total", "pilothouse_probe_expected_tokens_total"
GAPS = "pilothouse_engine_gaps_total"
NAMED = "{{model_name}} {{probe}}"
COVERAGE = ((None, "red"), (0.999, "yellow"), (1, "green"))


def _now() -> Section:
    def lost(title: str, about: str, query: str) -> Any:
        return panels.stat_of(title, about, f"{query} or vector(0)", "short", panels.ANY_IS_BAD)

    return Section(
        "Now",
        [
            [
                panels.stat_of(
                    "Coverage",
                    "Generated tokens that were scored, of those that could have been, in this range.",
                    f"{promql.grown(SCORED, PROBES)} / ({promql.grown(EXPECTED, PROBES)} > 0)",
                    "percentunit",
                    COVERAGE,
                ),
                lost(
                    "Gaps",
                    "Choices of which the engine left out positions.",
                    promql.grown("pilothouse_engine_gaps_total"),
                ),
                lost(
                    "Records dropped",
                    "Records that were not kept, in this range.",
                    "sum(increase(pilothouse_records_dropped_total[$__range]))",
                ),
                lost(
                    "Sink errors",
                    "Times that metrics, records, log or traces failed to take a request.",
                    "sum(increase(pilothouse_sink_errors_total[$__range]))",
                ),
                panels.stat_of(
                    "Step overhead",
                    "The worker's own time a step, of edits and reads, outside the compiled forward pass.",
                    f"{promql.rate('pilothouse_step_seconds_total')} / ({promql.rate('pilothouse_steps_total')} > 0)",
                    "s",
                ),
                panels.stat_of(
                    "Requests",
                    "Finished a second, with edits or probes.",
                    promql.rate("pilothouse_requests_total"),
                    "reqps",
                ),
            ]
        ],
    )


def _overhead() -> Section:
    seconds = promql.rate("pilothouse_step_seconds_total", by=("model_name", "phase"))
    steps = promql.rate("pilothouse_steps_total", by=("model_name",))
    return Section(
        "Time in edits and reads",
        [
            [
                panels.lines(
                    "Time a step",
                    "The worker's own time: `prepare` before the forward pass (row maps), `read` after it (scores).",
                    [(f"{seconds} / on (model_name) group_left () ({steps} > 0)", "{{model_name}} {{phase}}")],
                    "s",
                    stacked=True,
                ),
                panels.lines(
                    "Share of the engine's time",
                    "Seconds of that work a second. At 1 a worker would do nothing else.",
                    [(seconds, "{{model_name}} {{phase}}")],
                    "percentunit",
                    stacked=True,
                ),
                panels.lines("Steps", "Steps of the engine a second.", [(steps, "{{model_name}}")], "ops"),
            ]
        ],
    )


def _coverage() -> Section:
    scored, expected = (promql.rate(metric, PROBES, by=BY_PROBE) for metric in (SCORED, EXPECTED))
    return Section(
        "Coverage",
        [
            [
                panels.lines(
                    "Tokens scored, of those expected",
                    "1, always: every generated token but a choice's last has a position at which it is read.",
                    [(promql.share(scored, expected), NAMED)],
                    "percentunit",
                    steps=COVERAGE,
                    top=1,
                ),
                panels.lines(
                    "Tokens scored and expected",
                    "A second, by probe.",
                    [(scored, NAMED + " scored"), (expected, NAMED + " expected")],
                    "short",
                ),
                panels.lines(
                    "Choices not scored, by reason",
                    "A second. `engine_gap` and `not_finite` are faults; `aborted` and those of short answers are not.",
                    [
                        (
                            promql.rate("pilothouse_probe_unscored_total", PROBES, by=("probe", "reason")),
                            "{{probe}} {{reason}}",
                        )
                    ],
                    "ops",
                    stacked=True,
                ),
            ],
            [
                panels.lines(
                    "Gaps by kind",
                    "Choices a second of which the engine left out positions: not forwarded, not edited, not scored.",
                    [(promql.rate(GAPS, by=("model_name", "kind")), "{{kind}}")],
                    "ops",
                    width=24,
                )
            ],
        ],
    )


def _records() -> Section:
    def every(metric: str, label: str = "") -> str:
        return f"sum{f' by ({label})' if label else ''} (rate({metric}[{promql.WINDOW}]))"

    return Section(
        "Records, log and traces",
        [
            [
                panels.lines(
                    "Records",
                    "Written and dropped a second; dropped by reason.",
                    [
                        (every("pilothouse_records_written_total"), "written"),
                        (every("pilothouse_records_dropped_total", "reason"), "dropped: {{reason}}"),
                    ],
                    "ops",
                ),
                panels.lines(
                    "Records queued",
                    "Waiting to be written. What grows here for long is dropped in the end.",
                    [("sum(pilothouse_records_queued)", "queued")],
                    "short",
                ),
                panels.lines(
                    "Sink errors",
                    "Requests a second that a sink failed to take.",
                    [(every("pilothouse_sink_errors_total", "sink"), "{{sink}}")],
                    "ops",
                ),
            ],
            [
                panels.lines(
                    "Spans",
                    "A second, by what became of them.",
                    [(every("pilothouse_spans_total", "outcome"), "{{outcome}}")],
                    "ops",
                    width=12,
                ),
                panels.lines(
                    "Log lines",
                    "A second, by what became of them.",
                    [(every("pilothouse_log_lines_total", "outcome"), "{{outcome}}")],
                    "ops",
                    width=12,
                ),
            ],
        ],
    )


def _vllm() -> Section:
    def quantiles(name: str) -> list[panels.Query]:
        return [
            (
                promql.quantile(q, f"vllm:{name}", by=("model_name",)),
                "{{model_name}} " + legend,
            )
            for q, legend in ((0.5, "median"), (0.95, "95%"))
        ]

    def gauge(name: str, of: str = "sum") -> str:
        return promql.latest(f"vllm:{name}", by=("model_name",), of=of)

    def counter(name: str, *by: str) -> str:
        return promql.rate(f"vllm:{name}_total", by=by or ("model_name",))

    hits, looked_up = (
        promql.rate(f"vllm:prefix_cache_{what}_total", by=("model_name",)) for what in ("hits", "queries")
    )

    return Section(
        "vLLM",
        [
            [
                panels.lines(
                    "Requests running and waiting",
                    "Waiting requests grow where the engine is full, or plans wait for a slot.",
                    [
                        (gauge("num_requests_running"), "{{model_name}} running"),
                        (gauge("num_requests_waiting"), "{{model_name}} waiting"),
                    ],
                    "short",
                ),
                panels.lines(
                    "KV cache in use",
                    "The fullest engine's. At 100% requests are preempted.",
                    [(gauge("kv_cache_usage_perc", of="max"), "{{model_name}}")],
                    "percentunit",
                    top=1,
                ),
                panels.lines(
                    "Tokens",
                    "Tokens a second, prompts and generation.",
                    [
                        (counter("prompt_tokens"), "{{model_name}} prompt"),
                        (counter("generation_tokens"), "{{model_name}} generated"),
                    ],
                    "short",
                ),
            ],
            [
                panels.lines(
                    "Time to first token",
                    "From the request's arrival at the engine.",
                    quantiles("time_to_first_token_seconds"),
                    "s",
                ),
                panels.lines(
                    "Time between tokens",
                    "Of streams, between one token and the next.",
                    quantiles("inter_token_latency_seconds"),
                    "s",
                ),
                panels.lines(
                    "Time a request",
                    "From arrival to the last token.",
                    quantiles("e2e_request_latency_seconds"),
                    "s",
                ),
            ],
            [
                panels.lines(
                    "Time in the queue",
                    "Before the engine first schedules the request.",
                    quantiles("request_queue_time_seconds"),
                    "s",
                ),
                panels.lines(
                    "Requests finished, and preemptions",
                    "A second; finished by reason.",
                    [
                        (counter("request_success", "model_name", "finished_reason"), "{{finished_reason}}"),
                        (counter("num_preemptions"), "preempted"),
                    ],
                    "ops",
                ),
                panels.lines(
                    "Prefix cache hits",
                    "Share of prompt tokens found in the cache. A steered request finds blocks of its like alone.",
                    [(promql.share(hits, looked_up), "{{model_name}}")],
                    "percentunit",
                    top=1,
                ),
            ],
        ],
    )


def make() -> dict[str, Any]:
    """The dashboard."""
    sections = [_now(), _overhead(), _coverage(), _records(), _vllm()]
    about = "What steering and reading cost, whether every request is scored and recorded, and how vLLM does."
    return board(UID, "Overhead and health", about, [MODEL, PROBE], sections)
