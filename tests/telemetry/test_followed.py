"""Counts that others keep: records, spans, log lines, sinks; and what labels say of probes."""

import logging

import pytest
from telemetry_support.outcomes import MODEL, samples_of

from pilothouse.probing.quality import Quality
from pilothouse.telemetry.followed import RecordCounts
from pilothouse.telemetry.metrics import Metrics


def shown(metrics: Metrics, start: str) -> dict[str, float]:
    """Values of metrics whose names begin so, by name and by what is said of them."""
    return {
        "/".join([name.removeprefix("pilothouse_"), *(v for k, v in sorted(labels) if k != "model_name")]): value
        for (name, labels), value in samples_of(metrics.collect()).items()
        if name.startswith(f"pilothouse_{start}")
    }


def test_records_are_shown_as_the_store_counts_them(metrics: Metrics) -> None:
    now = RecordCounts()
    metrics.follow_records(lambda: now)
    reasons = ("queue_full", "database", "too_large", "shutdown")
    nothing = {f"records_dropped_total/{reason}": 0.0 for reason in reasons}
    assert shown(metrics, "records") == {"records_written_total": 0, "records_queued": 0, **nothing}
    for written, queued in ((10, 4), (10, 3), (25, 0)):
        now = RecordCounts(written, queued, {"database": written // 5})
        assert shown(metrics, "records") == {
            "records_written_total": written,
            "records_queued": queued,
            **nothing,
            "records_dropped_total/database": written // 5,
        }


def test_a_store_that_begins_anew_takes_nothing_back(metrics: Metrics) -> None:
    now = RecordCounts()
    metrics.follow_records(lambda: now)
    for written, total in ((10, 10), (2, 10), (5, 13)):
        now = RecordCounts(written)
        assert shown(metrics, "records_written")["records_written_total"] == total


def test_spans_lines_and_sinks_are_shown_as_they_are_counted(metrics: Metrics) -> None:
    spans, lines, errors = {"exported": 1}, {"dropped": 2}, {"Store": 3}
    metrics.follow_spans(lambda: spans)
    metrics.follow_log_lines(lambda: lines)
    metrics.follow_sink_errors(lambda: errors)
    for _ in range(2):
        assert shown(metrics, "spans") == {"spans_total/exported": 1, "spans_total/dropped": 0}
        assert shown(metrics, "log_lines") == {"log_lines_total/written": 0, "log_lines_total/dropped": 2}
        assert shown(metrics, "sink") == {"sink_errors_total/Store": 3}
    spans["dropped"] = 5
    assert shown(metrics, "spans")["spans_total/dropped"] == 5


def test_what_cannot_be_read_disturbs_nothing_and_is_logged_once(
    metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> RecordCounts:
        raise OSError("gone")

    metrics.follow_records(broken)
    metrics.follow_spans(lambda: {"exported": 1})
    with caplog.at_level(logging.ERROR):
        for _ in range(2):
            assert shown(metrics, "spans")["spans_total/exported"] == 1
    assert caplog.text.count("cannot be brought up to date") == 1


def test_quality_is_that_of_the_last_look(metrics: Metrics) -> None:
    def found() -> dict[str, float]:
        several = ("labelled", "precision", "recall", "calibration_error")
        return {name: value for what in several for name, value in shown(metrics, f"probe_{what}").items()}

    metrics.show_quality(MODEL, {"p": Quality(0.5, None, 0.25, 4)})
    # There was nothing to divide by for its recall.
    assert found() == {"probe_labelled/p": 4, "probe_precision/p": 0.5, "probe_calibration_error/p": 0.25}
    metrics.show_quality(MODEL, {})
    assert found() == {}


def test_labels_are_counted_by_what_the_probe_had_said(metrics: Metrics) -> None:
    for flagged, value in ((True, True), (True, False), (True, True)):
        metrics.count_label(MODEL, "p", flagged, value)
    assert shown(metrics, "probe_labels") == {
        "probe_labels_total/true/p/true": 2,
        "probe_labels_total/true/p/false": 1,
    }
