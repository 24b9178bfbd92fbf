"""Whether the model has begun to make things up: for which model, probe and steering, how sure, in which requests."""

from typing import Any

from dashboards import panels, promql
from dashboards.frame import MODEL, PROBE, STEERING, Section, board, hidden_choice, place
from dashboards.promql import PROBE as PROBES
from dashboards.promql import STEERING as STEERINGS

UID = "pilothouse-hallucination"
FLAGGED_PANEL, HIGH_PANEL, LOW_PANEL = 101, 102, 103
"""Numbers of the panels whose exemplars the tables show; above those that are counted."""

SCORED = "pilothouse_probe_requests_total"
SCORE, PROMPT_END = "pilothouse_probe_score", "pilothouse_probe_prompt_end"
BY_PROBE = ("model_name", "probe")
NAMED = "{{model_name}} {{probe}}"
ABOUT_LINKS = (
    "**From a point to its request.** Points in the score panels, and rows in the tables below, are exemplars: single "
    "requests that Prometheus took with a scrape, at most one a series. They are a sample of the requests, not a list "
    "of them. *request* leads to its record, a page with the tokens coloured by score; *trace* leads to its spans. "
    "Records are private: the page asks for the reader key or the admin key.\n\n"
    "**The whole list** of flagged requests in this range is the server's, the newest first:\n\n"
    '`curl -H "Authorization: Bearer KEY" "${server_url}/v1/probes/results?flagged=true&since=${__from:date:seconds}"`'
)


def _alarms(side: str) -> str:
    return f'label_values(pilothouse_probe_info{{model_name=~"$model", alarm="{side}"}}, probe)'


def _now() -> Section:
    scored = promql.grown(SCORED, PROBES)
    flagged = promql.grown(SCORED, PROBES, 'flagged="true"')
    unscored = promql.grown("pilothouse_probe_unscored_total", PROBES)
    return Section(
        "Now",
        [
            [
                panels.stat_of(
                    "Flagged",
                    "Share of the scored choices of this range that a probe flagged.",
                    promql.share(flagged, scored),
                    "percentunit",
                    panels.SHARE_STEPS,
                ),
                panels.stat_of("Choices flagged", "In this range.", f"{flagged} or vector(0)", "short"),
                panels.stat_of("Choices scored", "In this range; a choice counts once a probe.", scored, "short"),
                panels.stat_of(
                    "Choices not scored",
                    "In this range. The dashboard Overhead and health says why.",
                    f"{unscored} or vector(0)",
                    "short",
                    panels.ANY_IS_BAD,
                ),
                panels.stat_of(
                    "Alerts firing",
                    "Of the alerting rules that come with these dashboards.",
                    'count(ALERTS{alertname=~"Pilothouse.+", alertstate="firing"}) or vector(0)',
                    "short",
                    panels.ANY_IS_BAD,
                ),
                panels.stat_of(
                    "Servers up",
                    "Targets of the job `pilothouse` that answered the last scrape.",
                    'sum(up{job="pilothouse"})',
                    "short",
                    ((None, "red"), (1, "green")),
                ),
            ]
        ],
    )


def _flagged() -> Section:
    limit = "max by (model_name, probe) (pilothouse:probe_flagged:limit" + '{model_name=~"$model", probe=~"$probe"})'
    return Section(
        "Flagged",
        [
            [
                panels.lines(
                    "Flagged by probe",
                    "Share of the scored choices past the probe's threshold; dashed, the limit of the alert.",
                    [(promql.flagged_share(*BY_PROBE), NAMED), (limit, NAMED + panels.LIMIT)],
                    "percentunit",
                    top=0.2,
                ),
                panels.lines(
                    "Flagged by model",
                    "Share of the scored choices that a probe flagged, all chosen probes together.",
                    [(promql.flagged_share("model_name"), "{{model_name}}")],
                    "percentunit",
                    top=0.2,
                ),
                panels.lines(
                    "Flagged by steering",
                    "Share of the scores past the probe's threshold, by what steered the request; `none`: nothing did.",
                    [(promql.past_threshold(PROBES, STEERINGS), "{{probe}} {{steering}}")],
                    "percentunit",
                    top=0.2,
                ),
            ]
        ],
    )


def _scores() -> Section:
    heat = promql.grown(f"{SCORE}_bucket", PROBES, STEERINGS, by=("le",), window=promql.WINDOW)
    return Section(
        "Scores",
        [
            [
                panels.heat(
                    "Scores of $probe",
                    "How many choices had which calibrated score. Points are single requests.",
                    heat,
                    "percentunit",
                    repeat="probe",
                    exemplars=True,
                )
            ],
            [
                panels.lines(
                    "Score, by probe",
                    "Half of the choices score below the median, one in ten above the 90th percentile.",
                    [
                        (promql.quantile(0.5, SCORE, PROBES, STEERINGS, by=BY_PROBE), NAMED + " median"),
                        (promql.quantile(0.9, SCORE, PROBES, STEERINGS, by=BY_PROBE), NAMED + " 90%"),
                    ],
                    "percentunit",
                    width=12,
                    top=1,
                    exemplars=True,
                ),
                panels.lines(
                    "Risk before the first token, by probe",
                    "Score at the last prompt token, before anything is generated.",
                    [
                        (
                            promql.quantile(q, "pilothouse_probe_prompt_end", PROBES, STEERINGS, by=BY_PROBE),
                            NAMED + name,
                        )
                        for q, name in ((0.5, " median"), (0.9, " 90%"))
                    ],
                    "percentunit",
                    width=12,
                    top=1,
                    exemplars=True,
                ),
            ],
        ],
    )


def _requests() -> Section:
    flagged = promql.rate(SCORED, PROBES, 'flagged="true"', by=BY_PROBE)

    def source(panel_id: int, title: str, about: str, query: str, unit: str) -> Any:
        about = f"{about} Points are the requests at the right."
        return panels.lines(title, about, [(query, NAMED)], unit, exemplars=True, height=panels.TALL).id(panel_id)

    def scores(side: str) -> str:
        return promql.quantile(0.5, SCORE, PROBES, f'probe=~"$alarm_{side}"', STEERINGS, by=BY_PROBE)

    links = "With links to the request's record and to its trace. "
    return Section(
        "Requests to look at",
        [
            [panels.words("Where the links lead", "What is listed here and what is not.", ABOUT_LINKS)],
            [
                source(FLAGGED_PANEL, "Choices flagged", "A second, by probe.", flagged, "ops"),
                panels.exemplars_of(FLAGGED_PANEL, "Flagged requests", links + "The newest first.", "time"),
            ],
            [
                source(
                    HIGH_PANEL, "Probes that warn when high", "The median score of each.", scores("high"), "percentunit"
                ),
                panels.exemplars_of(HIGH_PANEL, "Highest scores", links + "The worst first.", "score"),
            ],
            [
                source(
                    LOW_PANEL, "Probes that warn when low", "The median score of each.", scores("low"), "percentunit"
                ),
                panels.exemplars_of(LOW_PANEL, "Lowest scores", links + "The worst first.", "score", descending=False),
            ],
        ],
    )


def _drift() -> Section:
    return Section(
        "Drift",
        [
            [
                panels.lines(
                    "Drift from the card's scores",
                    "Population stability index of recent scores against the card's: to 0.1 alike, past 0.25 another "
                    "kind of traffic, for which threshold and calibration were not made.",
                    [(promql.latest("pilothouse_probe_drift_psi", PROBES, by=BY_PROBE), NAMED)],
                    "short",
                    width=16,
                    steps=((None, "green"), (0.1, "yellow"), (0.25, "red")),
                    top=0.3,
                ),
                panels.lines(
                    "Scores behind the drift",
                    "Effective number of recent scores in the comparison. With few of them the index says little.",
                    [(promql.latest("pilothouse_probe_drift_scores", PROBES, by=BY_PROBE), NAMED)],
                    "short",
                ),
            ]
        ],
    )


def _labels() -> Section:
    def labelled(name: str) -> str:
        return promql.latest(f"pilothouse_probe_{name}", PROBES, by=BY_PROBE)

    return Section(
        "What labels say",
        [
            [
                panels.lines(
                    "Precision",
                    "Of the labelled flagged choices, the share that was found to be bad.",
                    [(labelled("precision"), NAMED)],
                    "percentunit",
                    width=6,
                    top=1,
                ),
                panels.lines(
                    "Recall",
                    "Of the labelled choices found to be bad, the share that was flagged. Where only flagged choices "
                    "are labelled it is 1: label some of the others too.",
                    [(labelled("recall"), NAMED)],
                    "percentunit",
                    width=6,
                    top=1,
                ),
                panels.lines(
                    "Calibration error",
                    "How far scores lie from the shares that were found, on average.",
                    [(labelled("calibration_error"), NAMED)],
                    "percentunit",
                    width=6,
                    steps=((None, "green"), (0.1, "yellow"), (0.2, "red")),
                    top=0.25,
                ),
                panels.lines(
                    "Labels",
                    "Labelled records behind the three, and labels taken in this range.",
                    [
                        (labelled("labelled"), NAMED + " records"),
                        (
                            promql.grown("pilothouse_probe_labels_total", PROBES, by=(*BY_PROBE, "flagged", "value")),
                            NAMED + " flagged {{flagged}}, found {{value}}",
                        ),
                    ],
                    "short",
                    width=6,
                ),
            ]
        ],
    )


def _features_and_registry() -> Section:
    tokens, active, activation = (
        promql.rate(f"pilothouse_feature_{name}_total", PROBES, by=BY_PROBE)
        for name in ("tokens", "active_tokens", "activation")
    )
    columns = {"model_name": "model", "probe": "probe", "version": "version", "layers": "layers"}
    columns |= {"aggregate": "aggregate", "calibration": "calibration", "alarm": "warns when"}
    threshold = promql.latest("pilothouse_probe_threshold", PROBES, by=BY_PROBE)
    info = promql.latest("pilothouse_probe_info", PROBES, by=tuple(columns))
    return Section(
        "Watched features, and what is loaded",
        [
            [
                panels.lines(
                    "Active share of watched features",
                    "Share of the generated tokens at which the feature of the sparse autoencoder was active.",
                    [(promql.share(active, tokens), NAMED)],
                    "percentunit",
                    width=12,
                ),
                panels.lines(
                    "Mean activation of watched features",
                    "Over all generated tokens, those included at which the feature was not active.",
                    [(f"{activation} / ({tokens} > 0)", NAMED)],
                    "short",
                    width=12,
                ),
            ],
            [
                panels.facts(
                    "Probes and their thresholds",
                    "The probes that the server has loaded, with digests; the value is the threshold.",
                    f"{info} * on (model_name, probe) group_left () {threshold}",
                    {**columns, "Value": "threshold"},
                    "percentunit",
                )
            ],
        ],
    )


def make() -> dict[str, Any]:
    """The dashboard."""
    variables = [
        MODEL,
        PROBE,
        STEERING,
        hidden_choice("alarm_high", "Probes that warn when high", _alarms("high")),
        hidden_choice("alarm_low", "Probes that warn when low", _alarms("low")),
        place("server_url", "Server", "http://localhost:8000"),
        place("traces_url", "Traces", "http://localhost:16686"),
    ]
    sections = [_now(), _flagged(), _scores(), _requests(), _drift(), _labels(), _features_and_registry()]
    about = "Whether the model has begun to make things up: where, since when, how sure the probes are, which requests."
    return board(UID, "Hallucination overview", about, variables, sections)
