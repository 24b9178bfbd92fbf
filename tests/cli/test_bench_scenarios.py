"""Which scenarios `pilothouse bench` measures on which machine, and how their servers are started."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pilothouse.cli.bench import command, machine
from pilothouse.cli.bench.command import arguments_of
from pilothouse.cli.bench.journal import Journal
from pilothouse.cli.bench.measure import Deadline, fit_tokens, later_seconds
from pilothouse.cli.bench.rounds import bursts_of
from pilothouse.cli.bench.scenarios import (
    LEAST_PAIRS,
    N_MANY,
    Scenario,
    batch_scenario,
    chosen,
    default_scenarios,
    full_scenarios,
    layers_scenario,
    named,
)
from pilothouse.cli.bench.shapes import HARBOR, LLAMA_8B, SMALL
from pilothouse.cli.bench.variants import AGAIN, DEFAULTS, MORE, ONE_VECTOR, STEERED
from pilothouse.cli.main import app
from pilothouse.core.errors import BadRequest
from pilothouse.harbor.paths import model_dir

DEVICES = ("cpu", "cuda")
EVERY = [s for where in DEVICES for s in default_scenarios(where, "bfloat16") + full_scenarios(where, "bfloat16")]


def test_the_default_has_the_table_of_targets() -> None:
    harbor, small = default_scenarios("cpu", "float32")
    assert (harbor.model, small.model.key, small.model.dtype) == (HARBOR, SMALL.key, "float32")
    assert (harbor.places, small.places) == (("plain", "ours", "wide"), ("plain", "wide"))
    for scenario in (harbor, small):
        assert (scenario.batch, scenario.tokens_in, scenario.tokens_out) == (16, 128, 256)
        measured = [c for c in scenario.comparisons if not c.latency]
        assert [c.variant.name for c in measured] == [v.name for v in (AGAIN, *DEFAULTS)]
        assert min(c.pairs for c in measured) >= LEAST_PAIRS


@pytest.mark.parametrize(
    ("starts", "prompts", "step", "tokens"),
    [
        ((270.0, 240.0), (0.25, 8.0), (0.0083, 0.1), (256, 32)),
        ((270.0, 120.0), (0.25, 4.0), (0.0083, 0.05), (256, 128)),
    ],
)
def test_the_default_fits_half_an_hour_of_two_cores(
    starts: tuple[float, ...], prompts: tuple[float, ...], step: tuple[float, ...], tokens: tuple[int, ...]
) -> None:
    left = 60 * command.MINUTES
    for scenario, start, prompt, a_step, n in zip(
        default_scenarios("cpu", "x"), starts, prompts, step, tokens, strict=True
    ):
        bursts = bursts_of(scenario.comparisons)
        later = later_seconds(scenario, prompt, a_step)
        assert scenario.seconds is not None
        left -= start + later + 11 * (prompt + 4 * a_step)
        assert fit_tokens(scenario, prompt, a_step, min(left, scenario.seconds)) == n
        left -= bursts * (prompt + n * a_step)
    assert left > 0


def test_the_larger_shape_has_what_a_burst_of_seconds_leaves_time_for_and_all_of_it_in_full() -> None:
    _, small = default_scenarios("cpu", "x")
    assert not any(c.latency for c in small.comparisons)
    assert (small.peers, small.singles, small.in_turn) == (False, 5, 3)
    _, full = default_scenarios("cpu", "x", full=True)
    assert full.places == ("plain", "ours", "wide")
    assert full.peers
    assert any(c.latency for c in full.comparisons)


def test_a_name_is_one_variant_of_a_scenario() -> None:
    for scenario in EVERY:
        sides = [side for c in scenario.comparisons for side in (c.variant, c.beside)]
        assert all(one == other for one in sides for other in sides if one.name == other.name)


def test_plans_vectors_and_layers_have_pairs_to_be_quoted_and_little_time() -> None:
    found = {s.name: s for s in full_scenarios("cpu", "x")}
    for name in ("harbor, 256 plans", "harbor, 1,000 vectors", "harbor, layers"):
        assert {c.pairs for c in found[name].comparisons} == {LEAST_PAIRS}
        assert found[name].seconds == 180.0
    (plans,) = [c for c in found["harbor, 256 plans"].comparisons if c.variant is not AGAIN]
    assert (plans.variant, plans.beside, found["harbor, 256 plans"].batch) == (STEERED, ONE_VECTOR, 256)


def test_streams_stand_beside_streams_and_plain_or_the_same_load_stands_beside_all() -> None:
    for scenario in EVERY:
        assert [c.name for c in scenario.comparisons if c.variant.name == AGAIN.name or c.variant.streamed]
        for c in scenario.comparisons:
            assert c.variant.streamed == c.beside.streamed
            same = (c.variant.steering, c.variant.n_probes) == (c.beside.steering, c.beside.n_probes)
            assert c.beside.server == "plain" or same
        names = [c.name for c in scenario.comparisons]
        assert len(set(names)) == len(names)


def test_scenarios_have_names_of_their_own() -> None:
    for where in DEVICES:
        names = [s.name for s in default_scenarios(where, "bfloat16") + full_scenarios(where, "bfloat16")]
        assert len(set(names)) == len(names)


def test_the_default_of_a_gpu_are_two_shapes_at_three_batches_and_two_servers_at_once() -> None:
    found = default_scenarios("cuda", "bfloat16")
    assert {(s.model.key, s.batch) for s in found} == {(m, b) for m in ("llama-8b", "qwen3-4b") for b in (1, 32, 256)}
    for scenario in found:
        assert len(scenario.places) == 2
        flags = scenario.engine_flags("cuda")
        assert flags[flags.index("--load-format") + 1] == "dummy"
        assert flags[flags.index("--gpu-memory-utilization") + 1] == "0.45"
        assert int(flags[flags.index("--max-num-seqs") + 1]) >= scenario.batch
    columns = [c.variant for s in found if s.model == LLAMA_8B and s.batch == 256 for c in s.comparisons]
    assert all(variant in columns for variant in DEFAULTS)


def test_full_measures_every_kind_of_edit_and_the_other_batches() -> None:
    found = full_scenarios("cpu", "bfloat16")
    variants = [c.variant for s in found for c in s.comparisons]
    assert all(variant in variants for variant in MORE)
    assert {s.batch for s in found if s.model == HARBOR} == {1, 8, 16, 32, 256}
    assert any(s.tokens_in > 900 for s in found)
    assert all(s.tokens_in + s.tokens_out <= s.model.max_len for s in EVERY)
    assert {place for s in found for place in s.places} == {
        "plain",
        "ours",
        "wide",
        "bare",
        "many",
        "sites-1",
        "sites-half",
    }


def test_a_server_has_room_for_a_plan_of_every_request() -> None:
    assert "--max-plans" not in default_scenarios("cpu", "bfloat16")[0].our_flags("ours")
    big = batch_scenario(HARBOR, 256, False)
    assert big.our_flags("ours") == ["--max-plans", "256"]
    assert big.n_vectors("ours") == 256
    assert big.n_vectors("many") == N_MANY
    flags = big.engine_flags("cpu")
    assert flags[flags.index("--max-num-seqs") + 1] == "256"
    assert flags.count("--max-num-seqs") == 1


def test_servers_of_a_scenario_differ_in_ours_alone(tmp_path: Path) -> None:
    scenario = layers_scenario(HARBOR)
    plain = arguments_of(scenario, "plain", model_dir(), tmp_path, "cpu", 0)
    half = arguments_of(scenario, "sites-half", model_dir(), tmp_path, "cpu", 0)
    shared = scenario.engine_flags("cpu")
    assert plain[-len(shared) :] == half[-len(shared) :] == shared
    assert half[half.index("--sites") + 1] == "0,1,2"
    assert len(list((tmp_path / "artefacts-sites-half" / "vectors").iterdir())) == scenario.batch
    assert "pilothouse.cli.main" not in plain


def test_a_shape_skips_the_self_test_and_the_embedded_model_has_it() -> None:
    assert "--no-self-test" in batch_scenario(SMALL, 8, True).our_flags("ours")
    assert "--no-self-test" not in batch_scenario(HARBOR, 8, True).our_flags("ours")
    assert batch_scenario(HARBOR, 8, True).our_flags("wide") == ["--max-probes", "64"]


def test_models_pairs_and_tokens_can_be_chosen() -> None:
    (found,) = chosen(default_scenarios("cpu", "bfloat16"), "harbor", 2, 32)
    assert {c.pairs for c in found.comparisons} == {2}
    assert (found.singles, found.prompts, found.tokens_out, found.seconds) == (2, 2, 32, None)
    with pytest.raises(BadRequest, match="harbor, qwen3-0"):
        chosen(default_scenarios("cpu", "bfloat16"), "gpt", None, None)


def test_scenarios_are_chosen_by_names_that_have_commas() -> None:
    every = default_scenarios("cpu", "x") + full_scenarios("cpu", "x")
    both = named(every, "harbor, 1,000 vectors,harbor, batch 1")
    assert {s.name for s in both} == {"harbor, batch 1", "harbor, 1,000 vectors"}
    for scenario in EVERY:
        found = named([s for s in EVERY if s.name != scenario.name] + [scenario], f" {scenario.name} ")
        assert [s.name for s in found] == [scenario.name]
    for wrong in ("harbor, batch 17", "", "harbor, batch 1, harbor", "batch 1"):
        with pytest.raises(BadRequest, match=r"qwen3-0\.5b, batch 16; harbor, batch 1;"):
            named(every, wrong)


@pytest.mark.parametrize("full", [True, False])
def test_the_command_measures_only_what_is_named(full: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []

    def run(scenario: Scenario, journal: Journal, where: str, deadline: Deadline, *rest: Any) -> None:
        measured.append(scenario.name)
        assert deadline.left(math.inf, 0.0) == math.inf

    monkeypatch.setattr(command, "run_scenario", run)
    monkeypatch.setattr(command, "device", lambda: "cpu")
    monkeypatch.setattr(command, "SCRATCH", tmp_path / "scratch")
    arguments = ["bench", *(["--full"] if full else [])]
    found = CliRunner().invoke(app, [*arguments, "--only", "harbor, layers,harbor, 1,000 vectors"])
    assert found.exit_code == 0, found.output
    assert measured == ["harbor, layers", "harbor, 1,000 vectors"]
    assert CliRunner().invoke(app, [*arguments, "--only", "harbor, layer"]).exit_code != 0


def test_the_command_measures_what_is_left_and_writes_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []

    def run(scenario: Scenario, journal: Journal, *rest: Any) -> None:
        measured.append(scenario.name)
        if len(measured) == 3:
            raise BadRequest("enough")

    monkeypatch.setattr(command, "run_scenario", run)
    monkeypatch.setattr(command, "device", lambda: "cpu")
    monkeypatch.setattr(command, "SCRATCH", tmp_path / "scratch")
    arguments = ["bench", "--full", "--models", "harbor", "--json", str(tmp_path / "out" / "results.json")]
    arguments += ["--report", str(tmp_path / "out" / "report.md")]
    assert CliRunner().invoke(app, arguments).exit_code != 0
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 0, found.output
    names = [s.name for s in [*default_scenarios("cpu", "x"), *full_scenarios("cpu", "x")] if s.model == HARBOR]
    assert measured == [*names[:3], *names[2:]]
    assert (tmp_path / "out" / "report.md").exists()
    assert (tmp_path / "out" / "results.json").exists()
    assert not list((tmp_path / "scratch").iterdir())


def test_the_machine_and_its_versions_are_told() -> None:
    about, versions = machine.machine(), machine.versions()
    assert about["processor"]
    assert int(about["cpus"]) >= 1
    assert float(about["memory_gb"]) > 0
    assert {"python", "torch", "commit"} <= set(versions)
    assert machine.fast_dtype() in ("bfloat16", "float32")
    assert dataclasses.asdict(HARBOR)["dtype"] == "float32"
