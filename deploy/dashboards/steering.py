"""What steers the model, how hard, when gates open, and what it does to the probes' scores."""

from typing import Any

from dashboards import panels, promql
from dashboards.frame import MODEL, PROBE, STEERING, VECTOR, Section, board
from dashboards.promql import PROBE as PROBES
from dashboards.promql import STEERING as STEERINGS
from dashboards.promql import VECTOR as VECTORS

UID = "pilothouse-steering"
REQUESTS = "pilothouse_requests_total"
STEERED = "pilothouse_steering_requests_total"
STRENGTH = "pilothouse_steering_strength"
FIRINGS, POSITIONS = "pilothouse_gate_firings_total", "pilothouse_gate_positions_total"
GATE = ("model_name", "vector", "probe", "action")
GATE_NAME = "{{vector}} behind {{probe}}, {{action}}"
BY_STEERING = ("model_name", "probe", "steering")
SCORE = "pilothouse_probe_score"


def _now() -> Section:
    requests, steered = promql.grown(REQUESTS), promql.grown(REQUESTS, 'steering!="none"')
    return Section(
        "Now",
        [
            [
                panels.stat_of(
                    "Requests steered",
                    "Share of the finished requests of this range that edits were asked for.",
                    promql.share(steered, requests),
                    "percentunit",
                    width=6,
                ),
                panels.stat_of("Requests", "Finished in this range, with edits or probes.", requests, "short", width=6),
                panels.stat_of(
                    "Tokens edited",
                    "In this range, by the chosen vectors.",
                    f"{promql.grown('pilothouse_steering_tokens_total', VECTORS)} or vector(0)",
                    "short",
                    width=6,
                ),
                panels.stat_of(
                    "Gates opened",
                    "In this range, each gate once a choice.",
                    f"{promql.grown(FIRINGS, VECTORS)} or vector(0)",
                    "short",
                    width=6,
                ),
            ]
        ],
    )


def _use() -> Section:
    return Section(
        "Use",
        [
            [
                panels.lines(
                    "Requests by steering",
                    "Finished requests a second, by what steered them: a name, names joined by +, `adhoc`, or `none`.",
                    [(promql.rate(REQUESTS, STEERINGS, by=("model_name", "steering")), "{{steering}}")],
                    "reqps",
                    stacked=True,
                ),
                panels.lines(
                    "Requests by vector",
                    "Finished requests a second that a vector was asked for in; one may ask for several.",
                    [(promql.rate(STEERED, VECTORS, by=("model_name", "vector")), "{{vector}}")],
                    "reqps",
                ),
                panels.lines(
                    "Tokens edited by vector",
                    "Tokens a second at which the vector changed the stream. 0 with requests: its gate stays shut.",
                    [
                        (
                            promql.rate("pilothouse_steering_tokens_total", VECTORS, by=("model_name", "vector")),
                            "{{vector}}",
                        )
                    ],
                    "short",
                ),
            ],
            [
                panels.lines(
                    "Requests by route",
                    "Finished requests a second with edits or probes, by endpoint.",
                    [(promql.rate(REQUESTS, STEERINGS, by=("route",)), "{{route}}")],
                    "reqps",
                    width=12,
                    stacked=True,
                ),
                panels.facts(
                    "Vectors",
                    "The vectors that the server has loaded, with digests.",
                    promql.latest("pilothouse_vector_info", VECTORS, by=("model_name", "vector", "version", "layers")),
                    {
                        "model_name": "model",
                        "vector": "vector",
                        "version": "version",
                        "layers": "layers",
                        "Value": "loaded",
                    },
                    "short",
                    width=12,
                ),
            ],
        ],
    )


def _strength() -> Section:
    by = ("model_name", "vector")
    return Section(
        "Strength",
        [
            [
                panels.heat(
                    "Strength",
                    "How far the chosen vectors push the stream where they push it most, in lengths of the stream.",
                    promql.grown(f"{STRENGTH}_bucket", VECTORS, by=("le",), window=promql.WINDOW),
                    "short",
                    width=12,
                ),
                panels.lines(
                    "Strength by vector",
                    "In lengths of the stream. Past 1 the edit outweighs what the model computed.",
                    [
                        (promql.quantile(0.5, STRENGTH, VECTORS, by=by), "{{vector}} median"),
                        (promql.quantile(0.95, STRENGTH, VECTORS, by=by), "{{vector}} 95%"),
                    ],
                    "short",
                    width=12,
                    steps=((None, "green"), (1, "red")),
                ),
            ]
        ],
    )


def _gates() -> Section:
    fired = promql.rate(FIRINGS, VECTORS, by=GATE)
    by_vector = promql.rate(FIRINGS, VECTORS, by=("model_name", "vector"))
    return Section(
        "Gates",
        [
            [
                panels.lines(
                    "Gates opened",
                    "Times a second that a gate opened, once a choice; `stop` ends the answer.",
                    [(fired, GATE_NAME)],
                    "ops",
                ),
                panels.lines(
                    "Openings a request",
                    "Of the requests that ask for the vector, how many opened its gates; above 1 with several gates or "
                    "choices.",
                    [
                        (
                            f"{by_vector} / ({promql.rate(STEERED, VECTORS, by=('model_name', 'vector'))} > 0)",
                            "{{vector}}",
                        )
                    ],
                    "short",
                ),
                panels.lines(
                    "Positions open",
                    "For how many positions a gate that opened stays open, on average.",
                    [(f"{promql.rate(POSITIONS, VECTORS, by=GATE)} / ({fired} > 0)", GATE_NAME)],
                    "short",
                ),
            ]
        ],
    )


def _effect() -> Section:
    mean = promql.mean(SCORE, PROBES, STEERINGS, by=BY_STEERING)
    plain = promql.mean(SCORE, PROBES, 'steering="none"', by=("model_name", "probe"))
    name = "{{probe}} {{steering}}"
    return Section(
        "Effect on scores",
        [
            [
                panels.lines(
                    "Scores by steering",
                    "Median and 90th percentile of the calibrated score.",
                    [
                        (promql.quantile(0.5, SCORE, PROBES, STEERINGS, by=BY_STEERING), name + " median"),
                        (promql.quantile(0.9, SCORE, PROBES, STEERINGS, by=BY_STEERING), name + " 90%"),
                    ],
                    "percentunit",
                    width=12,
                    top=1,
                    exemplars=True,
                ),
                panels.lines(
                    "Flagged by steering",
                    "Share of the scores past the probe's threshold.",
                    [(promql.past_threshold(PROBES, STEERINGS), name)],
                    "percentunit",
                    width=12,
                    top=0.2,
                ),
            ],
            [
                panels.lines(
                    "Mean score by steering",
                    "Requests are not dealt out by chance: what steers them may also be asked other things.",
                    [(mean, name)],
                    "percentunit",
                    width=12,
                    top=1,
                ),
                panels.bars(
                    "Mean score, less that of unsteered requests",
                    "Below 0 the probe's score is lower where the request was steered.",
                    [(f"{mean} - on (model_name, probe) group_left () ({plain})", name)],
                    "percentunit",
                    panels.PLAIN,
                    width=12,
                )
                .min(-1)
                .max(1),
            ],
        ],
    )


def make() -> dict[str, Any]:
    """The dashboard."""
    sections = [_now(), _use(), _strength(), _gates(), _effect()]
    about = "What steers the model, how hard, when its gates open, and what that does to the probes' scores."
    return board(UID, "Steering", about, [MODEL, PROBE, STEERING, VECTOR], sections)
