"""Recording and alerting rules: valid, tested by promtool, each test able to fail, each alert with a runbook."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from deploy_support import boards, catalogue
from deploy_support.paths import RULE_TESTS, RULES, RUNBOOKS
from ruamel.yaml import YAML

ALERTS: list[dict[str, Any]] = [
    rule for group in YAML(typ="safe").load(RULES / "alerts.yml")["groups"] for rule in group["rules"]
]
NAMES = [alert["alert"] for alert in ALERTS]

MUTATIONS = [
    ("flagged", ">= 50", ">= 0"),
    ("flagged", "0.2 * group", "0.05 * group"),
    ("flagged", "unless on (model_name, probe) pilothouse_feature_tokens_total", ""),
    ("flagged", "or 0 * pilothouse:probe_scored:increase15m\n", "\n"),
    ("history", "> on (model_name, probe) 2 *", "> on (model_name, probe) 7 *"),
    ("history", "pilothouse:probe_flagged:ratio1d > 0.05", "pilothouse:probe_flagged:ratio1d > 0.01"),
    ("history", ">= 1000", ">= 0"),
    ("drift", "and pilothouse_probe_drift_scores >= 200", ""),
    ("drift", "> 0.25", ">= 0.25"),
    ("coverage", "< 0.999", "< 0.98"),
    ("coverage", ">= 500", ">= 0"),
    ("coverage", "aborted|", ""),
    ("coverage", ">= 50\n", ">= 0\n"),
    ("coverage", "or (pilothouse_engine_gaps_total unless pilothouse_engine_gaps_total offset 15m) > 0", ""),
    ("records", "or (pilothouse_records_dropped_total unless pilothouse_records_dropped_total offset 15m) > 0", ""),
    ("records", '{outcome="dropped"}', ""),
    ("target", "== 0", "== 2"),
    ("target", "for: 5m\n", "\n"),
]
"""A test file, and a change of the rules that it must notice."""


def promtool(programs: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([programs / "promtool", *arguments], capture_output=True, text=True, check=False)


def test_the_rules_are_valid(programs: Path) -> None:
    done = promtool(programs, "check", "rules", *sorted(RULES.glob("*.yml")))
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_do_what_their_tests_say(programs: Path) -> None:
    done = promtool(programs, "test", "rules", *sorted(RULE_TESTS.glob("*.yml")))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("name", "old", "new"), MUTATIONS)
def test_changed_rules_fail_their_tests(name: str, old: str, new: str, programs: Path, tmp_path: Path) -> None:
    (tmp_path / "rules").mkdir()
    (tmp_path / "tests").mkdir()
    changed = 0
    for path in RULES.glob("*.yml"):
        text = path.read_text(encoding="utf-8")
        changed += old in text
        (tmp_path / "rules" / path.name).write_text(text.replace(old, new), encoding="utf-8")
    assert changed, f"the rules do not say {old!r}"
    test = tmp_path / "tests" / f"{name}.yml"
    test.write_text((RULE_TESTS / f"{name}.yml").read_text(encoding="utf-8"), encoding="utf-8")
    check = promtool(programs, "check", "rules", *(tmp_path / "rules").glob("*.yml"))
    assert check.returncode == 0, check.stdout + check.stderr
    done = promtool(programs, "test", "rules", test)
    assert done.returncode != 0
    assert "FAILED" in done.stdout + done.stderr


@pytest.mark.parametrize("alert", ALERTS, ids=NAMES)
def test_an_alert_says_what_to_do(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in ("critical", "warning")
    assert set(alert["annotations"]) == {"summary", "description", "runbook", "runbook_url"}
    assert alert["annotations"]["runbook_url"] == f"docs/runbooks.md#{alert['alert'].lower()}"
    text = RUNBOOKS.read_text(encoding="utf-8")
    section = re.search(rf"^## {alert['alert']}\n(.+?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section, "it has no runbook"
    for part in ("**It means**", "**Look at**", "**Do**"):
        assert part in section[1]


@pytest.mark.parametrize("name", NAMES)
def test_an_alert_is_shown_to_fire_and_not_to_fire(name: str) -> None:
    cases = [
        case["exp_alerts"]
        for path in RULE_TESTS.glob("*.yml")
        for test in YAML(typ="safe").load(path)["tests"]
        for case in test.get("alert_rule_test", ())
        if case["alertname"] == name
    ]
    assert any(cases)
    assert not all(cases)


def test_runbooks_are_of_alerts_that_exist() -> None:
    titles = re.findall(r"^## (Pilothouse\w+)$", RUNBOOKS.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(titles) == sorted(NAMES)


def test_rules_ask_for_what_exists() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in RULES.glob("*.yml"))
    code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    recorded = set(re.findall(r"record: (\S+)", code))
    assert set(boards.METRIC.findall(code)) <= recorded | set(catalogue.stored())
