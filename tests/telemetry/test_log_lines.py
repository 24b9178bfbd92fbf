"""The request log: what a line says, and files that are shared, moved, full or gone."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pilothouse.core.errors import StartupError
from pilothouse.core.records import NO_TOKEN_IDS, ChoiceOutcome, ProbeOutcome, RequestOutcome
from pilothouse.core.trace import TraceContext
from pilothouse.telemetry.log_lines import LogLines, check_log

OUTCOME = RequestOutcome(
    response_id="chatcmpl-7",
    model_name="tiny",
    route="/v1/chat/completions",
    steering="calm+honest",
    steered_by=("honest", "calm"),
    created=1_700_000_000.25,
    choices=(
        ChoiceOutcome(
            (
                ProbeOutcome("risk", 0.75, 0.5, True, 6, level="low"),
                ProbeOutcome("adhoc", None, None, False, 0, "not_finite"),
                ProbeOutcome("adhoc", 0.25, None, False, 6),
            ),
            {"honest": 6, "calm": 1},
            n_generated=7,
        ),
        ChoiceOutcome((), {"honest": 3}, n_generated=4),
    ),
    seconds=2.5,
    n_prompt=12,
    plan_digests=("aa", "bb"),
    trace=TraceContext("4bf92f3577b34da6a3ce929d0e0e4736", "b7ad6b7169203331"),
    text={"prompts": ["a secret"], "completions": ["another secret"]},
)


def lines(path: Path) -> list[dict[str, Any]]:
    text = path.read_text()
    assert text.endswith("\n") or not text
    return [json.loads(line) for line in text.splitlines()]


def settled(log: LogLines, total: int) -> dict[str, int]:
    deadline = time.monotonic() + 20
    while sum(log.counts().values()) < total and time.monotonic() < deadline:
        time.sleep(0.005)
    return log.counts()


def test_a_line_says_what_is_known_and_nothing_that_was_said(tmp_path: Path) -> None:
    log = LogLines(str(tmp_path / "log"))
    log.observe(OUTCOME)
    log.close()
    assert lines(tmp_path / "log") == [
        {
            "time": "2023-11-14T22:13:22.750Z",
            "level": "info",
            "message": "request",
            "response_id": "chatcmpl-7",
            "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
            "span_id": "b7ad6b7169203331",
            "model": "tiny",
            "route": "/v1/chat/completions",
            "steering": "calm+honest",
            "vectors": ["honest", "calm"],
            "plan_digests": ["aa", "bb"],
            "flagged": True,
            "probes": [
                {"choice": 0, "probe": "risk", "score": 0.75, "flagged": True, "level": "low", "reason": None},
                {
                    "choice": 0,
                    "probe": "adhoc",
                    "score": None,
                    "flagged": False,
                    "level": None,
                    "reason": "not_finite",
                },
                {"choice": 0, "probe": "adhoc", "score": 0.25, "flagged": False, "level": None, "reason": None},
            ],
            "prompt_tokens": 12,
            "generated_tokens": 11,
            "edited_tokens": {"honest": 9, "calm": 1},
            "created": 1_700_000_000.25,
            "seconds": 2.5,
            "error": None,
        }
    ]
    assert log.counts() == {"written": 1, "dropped": 0}


def test_the_example_in_the_docs_is_such_a_line(tmp_path: Path) -> None:
    docs = Path(__file__).parents[2] / "docs" / "traces.md"
    (example,) = re.findall(r"```json\n(.*)\n```", docs.read_text())
    log = LogLines(str(tmp_path / "log"))
    log.observe(OUTCOME)
    log.close()
    (line,) = lines(tmp_path / "log")
    shown = json.loads(example)
    assert list(shown) == list(line)
    assert list(shown["probes"][0]) == list(line["probes"][0])


def test_failures_and_requests_without_a_trace(tmp_path: Path) -> None:
    log = LogLines(str(tmp_path / "log"))
    for error in ("aborted", NO_TOKEN_IDS):
        log.observe(replace(OUTCOME, error=error, trace=None))
    log.close()
    found = [(line["level"], line["error"], line["trace_id"], line["span_id"]) for line in lines(tmp_path / "log")]
    assert found == [("error", "aborted", None, None), ("info", NO_TOKEN_IDS, None, None)]


def test_hostile_ids_stay_in_their_line(tmp_path: Path) -> None:
    ids = ['"}\n{"level":"error"', "\u2028\x00\x1b[31m", "\ud800", "é" * 10_000]
    log = LogLines(str(tmp_path / "log"))
    for response_id in ids:
        log.observe(replace(OUTCOME, response_id=response_id))
    log.close()
    assert [line["response_id"] for line in lines(tmp_path / "log")] == ids
    assert (tmp_path / "log").read_bytes().isascii()


def test_a_file_that_is_moved_or_deleted_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = LogLines(str(path))
    log.observe(replace(OUTCOME, response_id="a"))
    settled(log, 1)
    path.rename(tmp_path / "log.1")
    log.observe(replace(OUTCOME, response_id="b"))
    settled(log, 2)
    path.unlink()
    log.observe(replace(OUTCOME, response_id="c"))
    assert settled(log, 3) == {"written": 3, "dropped": 0}
    log.close()
    assert [line["response_id"] for line in lines(tmp_path / "log.1") + lines(path)] == ["a", "c"]


def test_a_folder_that_goes_costs_the_lines_until_it_is_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    log = LogLines(str(folder / "log"))
    shutil.rmtree(folder)
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            log.observe(OUTCOME)
        assert settled(log, 5) == {"written": 0, "dropped": 5}
    assert len(caplog.records) == 1, "told once"
    assert "No such file" in caplog.text
    folder.mkdir()
    log.observe(replace(OUTCOME, response_id="back"))
    assert settled(log, 6) == {"written": 1, "dropped": 5}
    log.close()
    assert [line["response_id"] for line in lines(folder / "log")] == ["back"]


def test_a_full_disk_costs_the_lines_alone(caplog: pytest.LogCaptureFixture) -> None:
    log = LogLines("/dev/full")
    with caplog.at_level(logging.WARNING):
        for _ in range(50):
            log.observe(OUTCOME)
        assert settled(log, 50) == {"written": 0, "dropped": 50}
    log.close()
    assert len(caplog.records) == 1
    assert "No space left" in caplog.text


def test_a_line_that_was_torn_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, room = os.write, [100]

    def full_after_a_while(descriptor: int, data: bytes) -> int:
        if room[0] == 0:
            raise OSError(28, "No space left on device")
        done = write(descriptor, data[: room[0]])
        room[0] -= done
        return done

    log = LogLines(str(tmp_path / "log"))
    monkeypatch.setattr("pilothouse.telemetry.log_lines.os.write", full_after_a_while)
    log.observe(OUTCOME)
    log.observe(OUTCOME)
    assert settled(log, 2) == {"written": 0, "dropped": 2}
    monkeypatch.setattr("pilothouse.telemetry.log_lines.os.write", write)
    log.observe(replace(OUTCOME, response_id="whole"))
    log.close()
    torn, whole = (tmp_path / "log").read_text().splitlines()
    assert len(torn) == 100
    assert json.loads(whole)["response_id"] == "whole"
    assert log.counts() == {"written": 1, "dropped": 2}


def test_who_does_not_read_keeps_nobody_waiting(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    log = LogLines(str(pipe), max_bytes=100_000)
    for _ in range(2000):
        log.observe(OUTCOME)
    before = log.counts()
    assert before["dropped"] > 1000
    log.close(0.1)
    counts = log.counts()
    assert counts["written"] >= before["written"] > 0
    assert counts["written"] + counts["dropped"] == 2000
    os.read(reader, 1 << 20)
    for thread in threading.enumerate():
        if thread.name == "pilothouse-request-log":
            thread.join(10)
    os.close(reader)
    assert log.counts() == counts, "what is counted as lost stays so"
    log.observe(OUTCOME)
    assert log.counts() == {"written": counts["written"], "dropped": counts["dropped"] + 1}


def test_only_what_waits_takes_room(tmp_path: Path) -> None:
    log = LogLines(str(tmp_path / "log"), max_bytes=3000)
    for n in range(20):
        log.observe(OUTCOME)
        assert settled(log, n + 1) == {"written": n + 1, "dropped": 0}
    log.close()


WRITER = """
import sys
from dataclasses import replace
from pilothouse.core.records import RequestOutcome
from pilothouse.telemetry.log_lines import LogLines
log = LogLines(sys.argv[1])
outcome = RequestOutcome("", "m", "/v1/completions", "none", (), 0.0, (), error="x" * 9000)
for n in range(300):
    log.observe(replace(outcome, response_id=f"{sys.argv[2]}-{n}"))
log.close(30)
assert log.counts() == {"written": 300, "dropped": 0}
"""


def test_several_servers_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(k)], env=environment) for k in range(3)]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0, 0]
    assert sorted(line["response_id"] for line in lines(path)) == sorted(
        f"{k}-{n}" for k in range(3) for n in range(300)
    )


def test_the_standard_error_stream(capfd: pytest.CaptureFixture[str]) -> None:
    log = LogLines("-")
    log.observe(OUTCOME)
    log.close()
    assert json.loads(capfd.readouterr().err)["response_id"] == "chatcmpl-7"


def test_a_log_that_cannot_be_written_ends_the_start(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="there is no such folder"):
        check_log(str(tmp_path / "missing" / "log"))
    for bad in (tmp_path / "missing" / "log", tmp_path):
        with pytest.raises(StartupError, match="--request-log"):
            LogLines(str(bad))
    for good in ("-", None, str(tmp_path / "log")):
        check_log(good)
    assert not (tmp_path / "log").exists()
