"""The columns of the table of requests: what is checked of every kind. Test modules say which, on which server."""

from __future__ import annotations

import pytest

from matrix_support.expected import (
    Oracle,
    check_effect,
    check_logprobs,
    check_no_leaks,
    check_readouts,
    check_receipts,
    check_unsteered,
)
from matrix_support.requests import Sent


class Columns:
    """Tests for a subclass; its module has the fixtures `kind` (whose parameters are the rows), `sent` and `oracle`."""

    @pytest.mark.cell("requests", "{kind}", "readouts")
    def test_readouts_equal_the_reference(self, oracle: Oracle, kind: str, sent: Sent) -> None:
        answers = [*sent.answers["probed"], *sent.answers["both"]]
        assert sum(check_readouts(oracle, answer) for answer in answers) > 0

    @pytest.mark.cell("requests", "{kind}", "log-probabilities")
    def test_log_probabilities_equal_the_reference(self, oracle: Oracle, kind: str, sent: Sent) -> None:
        for answers in sent.answers.values():
            for answer in answers:
                check_logprobs(oracle, answer, sent.kind.grammar)
        check_effect(oracle, [*sent.answers["steered"], *sent.answers["both"]])

    @pytest.mark.cell("requests", "{kind}", "receipts")
    def test_receipts_count(self, kind: str, sent: Sent) -> None:
        for answer in sent.everything:
            check_receipts(answer)

    @pytest.mark.cell("requests", "{kind}", "unsteered")
    def test_unsteered_traffic_is_untouched(self, oracle: Oracle, kind: str, sent: Sent) -> None:
        check_unsteered(oracle, sent)

    @pytest.mark.cell("requests", "{kind}", "no leaks")
    def test_nothing_is_left_behind(self, kind: str, sent: Sent) -> None:
        check_no_leaks(sent)
