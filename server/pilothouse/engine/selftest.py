"""The start-up self-test: on the model that is loaded, does steering steer and does reading read?

Requests go the whole way that served ones go (client, scheduler, slots, compiled graph, readings back), in one mixed
batch and then each by itself, for a step runs the form of the graph that its batch needs (engine/forms.py). What comes
back is held against `engine.reference`. The scores are poisoned first. A server that fails does not start: a steer that
silently does not happen is worse than none.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import torch

from pilothouse.core.config import EngineLayout
from pilothouse.core.directions import Direction
from pilothouse.core.edits import Edit, Positions
from pilothouse.core.errors import EngineGap, StartupError
from pilothouse.core.plans import Plan, Readout
from pilothouse.core.sites import Float32, ModelShape
from pilothouse.core.tracks import ChoiceTrack
from pilothouse.engine.failure import startup_failures
from pilothouse.engine.inprocess import start_engine
from pilothouse.engine.launch import engine_config, parse_arguments, prepare_environment
from pilothouse.engine.own_requests import engines, serve_own
from pilothouse.engine.reference import NoReferenceError, ReferenceAnswer, ReferenceRequest, decode
from pilothouse.engine.runner import layout_of
from pilothouse.engine.support import model_shape, require_supported_config
from pilothouse.engine.versions import require_supported_vllm

N_PROMPT = 12
N_GENERATED = 3
N_BEST = 8
N_STEPS = 2
STRENGTH = 0.7
"""Length of what is added, in lengths of the stream."""

TOLERANCE = {torch.float32: 0.01, torch.float16: 0.3, torch.bfloat16: 0.3}
"""Largest difference from the reference, in units of what steering changes or of the spread of the readouts. Rounding
stays below (2e-6 measured in float32, 0.08 in bfloat16); an edit or a score that is missing or misplaced makes 1."""

PLAIN = Plan()

LEAST_MOVEMENT = 1e-3
"""Nats. Where even the reference moves less than this, the model does not listen to its residual stream."""


@dataclass(frozen=True)
class SelfTestReport:
    """What was measured, in the units of `TOLERANCE`; `skipped` says why there was nothing to compare with.

    lengths: the typical length of the stream by layer, unsteered.
    """

    movement: float = 0.0
    steering_error: float = 0.0
    identity_error: float = 0.0
    readout_error: float = 0.0
    skipped: str | None = None
    lengths: Mapping[int, float] = field(default_factory=dict)

    def __str__(self) -> str:
        if self.skipped is not None:
            return f"not compared with a reference: {self.skipped}"
        return (
            f"steering moved log-probabilities by {self.movement:.3g} nats and differs from the reference by "
            f"{self.steering_error:.1e} of that, zero strength by {self.identity_error:.1e}; readouts differ by "
            f"{self.readout_error:.1e} of their spread"
        )


@dataclass(frozen=True)
class _Trial:
    """One request as it was served: generated tokens, and the log-probabilities of the best ones at each of them."""

    plan: Plan
    generated: list[int]
    best: list[dict[int, float]]
    track: ChoiceTrack


class _Reference:
    """Answers of the reference for one prompt, each asked for once."""

    def __init__(self, engine_client: Any, prompt: list[int]) -> None:
        self.prompt = prompt
        self._engine_client = engine_client
        self._answers: dict[tuple[int, tuple[int, ...]], tuple[Plan, ReferenceAnswer]] = {}

    async def answer(self, generated: Sequence[int], plan: Plan) -> ReferenceAnswer:
        """What the reference says of the prompt and `generated` under `plan`."""
        key = (id(plan), tuple(generated))
        if key not in self._answers:
            request = msgspec.msgpack.encode(ReferenceRequest.of(self.prompt, generated, plan))
            found = decode(await self._engine_client.collective_rpc("pilothouse_reference", args=(request,)))
            # With the plan, so that no other can have its id.
            self._answers[key] = plan, found
        return self._answers[key][1]

    async def best(self, trial: _Trial, plan: Plan) -> Float32:
        """Log-probabilities of the best tokens of `trial` under `plan`, [N_GENERATED x at least N_BEST]."""
        found = await self.answer(trial.generated, plan)
        table = found.table(len(self.prompt) + len(trial.generated))
        return _centred([table[len(self.prompt) - 1 + i, list(best)] for i, best in enumerate(trial.best)])


async def self_test(engine_client: Any) -> SelfTestReport:
    """Raise StartupError, saying what is wrong, unless the running engine steers and reads as the reference does.

    engine_client: with the seams of `SteeringClient` in place.
    """
    config = engine_client.model_config
    if 0 <= config.max_logprobs < N_BEST:
        return SelfTestReport(skipped=f"--max-logprobs below {N_BEST}")
    if engine_client.vllm_config.parallel_config.data_parallel_size > 1 and config.is_moe:
        # One engine's forward pass would wait for the others' shares of the experts.
        return SelfTestReport(skipped="experts that data parallel engines share")
    layout = layout_of(engine_client.vllm_config)
    shape = model_shape(engine_client.vllm_config, layout.sites)
    prompt = _prompt(config.get_vocab_size(), min(N_PROMPT, config.max_model_len - N_GENERATED))
    reference = _Reference(engine_client, prompt)
    try:
        plain = await reference.answer([], PLAIN)
    except NoReferenceError as error:
        return SelfTestReport(skipped=str(error))
    steered = _steering_plan(shape, plain.norms, STRENGTH)
    plans = [PLAIN, steered, _steering_plan(shape, plain.norms, 0.0), _reading_plan(shape)]
    if layout.chain_steps >= N_STEPS:
        plans.append(_chained_plan(shape, plain.norms))
    reports = [await _test_engine(engine_client, engine, reference, plans, plain) for engine in engines(engine_client)]
    # The worst one speaks for all.
    return max(reports, key=lambda report: max(report.steering_error, report.identity_error, report.readout_error))


async def _test_engine(
    engine_client: Any, engine: int, reference: _Reference, plans: list[Plan], plain: ReferenceAnswer
) -> SelfTestReport:
    """`self_test` of one engine; any engine's reference will do, for all hold the same weights."""
    # A gathered batch: plain, steered and read requests share their steps. Then each has its steps for itself.
    numbers = range(len(plans))
    batches: list[Sequence[int]] = [numbers, *([number] for number in numbers)]
    trials: dict[int, list[_Trial]] = {number: [] for number in numbers}
    for batch in batches:
        await engine_client.collective_rpc("pilothouse_poison")
        served = await asyncio.gather(
            *(_serve(engine_client, reference.prompt, plans[number], engine) for number in batch)
        )
        for number, trial in zip(batch, served, strict=True):
            trials[number].append(trial)
    tolerance = TOLERANCE[engine_client.model_config.dtype]
    steering = [await _steering(reference, trial) for number in (1, *numbers[4:]) for trial in trials[number]]
    movement, _ = steering[0]
    report = SelfTestReport(
        movement,
        max(error / moved for moved, error in steering),
        max([await _error(reference, trial, PLAIN) for trial in (*trials[0], *trials[2])]) / movement,
        max([await _readout_error(reference, trial) for trial in trials[3]]),
        lengths=plain.typical,
    )
    for found, what in (
        (report.steering_error, "a steered request differs from the reference"),
        (report.identity_error, "a request without steering, or with strength zero, differs from the reference"),
        (report.readout_error, "readouts differ from the reference"),
    ):
        if not found <= tolerance:
            raise StartupError(f"self-test failed: {what} ({report}; {tolerance} is allowed)")
    return report


def check_model(arguments: Sequence[str]) -> SelfTestReport:
    """Start an engine by arguments of `vllm serve` and run `self_test` on it; other failures to start pass through."""
    require_supported_vllm()
    prepare_environment()
    layout = EngineLayout()
    config = engine_config(parse_arguments(arguments, layout))
    require_supported_config(config)

    async def check() -> SelfTestReport:
        engine = await start_engine(config, layout)
        try:
            return await self_test(engine)
        finally:
            engine.shutdown()

    with startup_failures():
        return asyncio.run(check())


def _prompt(n_vocabulary: int, n_tokens: int) -> list[int]:
    """Token ids spread over the vocabulary, the same at each start."""
    rng = np.random.default_rng(0)
    return [int(token) for token in rng.integers(0, n_vocabulary, size=max(n_tokens, 1))]


def _direction(rng: np.random.Generator, layers: list[int], d_model: int) -> Direction:
    """A row of length 1 for each of `layers`."""
    rows = {layer: rng.normal(size=d_model).astype(np.float32) for layer in layers}
    return Direction({layer: row / np.linalg.norm(row) for layer, row in rows.items()})


def _steering_plan(shape: ModelShape, norms: dict[int, float], strength: float) -> Plan:
    """Two edits: everywhere at the middle site, and on generated tokens at the last but one."""
    rng = np.random.default_rng(1)
    places: list[tuple[int, Positions]] = [
        (shape.sites[len(shape.sites) // 2], "all"),
        (shape.sites[max(len(shape.sites) - 2, 0)], "generation"),
    ]
    edits = [
        Edit("self-test", _direction(rng, [layer], shape.d_model), {layer: strength * norms[layer]}, positions)
        for layer, positions in places
    ]
    return Plan(tuple(edits))


def _chained_plan(shape: ModelShape, norms: dict[int, float]) -> Plan:
    """Edits that depend on the stream: one component is set, and another projected out with the length kept."""
    rng = np.random.default_rng(3)
    middle, late = shape.sites[len(shape.sites) // 2], shape.sites[max(len(shape.sites) - 2, 0)]
    value = {middle: STRENGTH * norms[middle]}
    return Plan(
        (
            Edit("self-test", _direction(rng, [middle], shape.d_model), value, "all", op="set"),
            Edit(
                "self-test", _direction(rng, [late], shape.d_model), {late: 1.0}, "all", op="ablate", preserve_norm=True
            ),
        )
    )


def _reading_plan(shape: ModelShape) -> Plan:
    """The first site, the last one, and the sum over all."""
    rng = np.random.default_rng(2)
    layers = [[shape.sites[0]], [shape.sites[-1]], list(shape.sites)]
    return Plan((), tuple(Readout("self-test", _direction(rng, chosen, shape.d_model)) for chosen in layers), True)


async def _serve(engine_client: Any, prompt: list[int], plan: Plan, engine: int) -> _Trial:
    from vllm import SamplingParams

    params = SamplingParams(max_tokens=N_GENERATED, temperature=0.0, ignore_eos=True, logprobs=N_BEST, detokenize=False)
    try:
        last, track = await serve_own(engine_client, prompt, plan, params, "self-test", engine)
    except EngineGap as gap:
        raise StartupError(f"self-test failed: {gap}") from None
    choice = last.outputs[0]
    best = [{token: entry.logprob for token, entry in position.items()} for position in choice.logprobs]
    return _Trial(plan, list(choice.token_ids), best, track)


def _measured(trial: _Trial) -> Float32:
    return _centred([np.array(list(best.values()), dtype=np.float32) for best in trial.best])


def _centred(rows: list[Float32]) -> Float32:
    """Differences within each position only: servers may be told to report logits instead of log-probabilities."""
    return np.concatenate([row - row.mean() for row in rows])


async def _error(reference: _Reference, trial: _Trial, plan: Plan) -> float:
    """Largest difference of log-probabilities between `trial` and the reference under `plan`, in nats."""
    return float(np.abs(_measured(trial) - await reference.best(trial, plan)).max())


async def _steering(reference: _Reference, trial: _Trial) -> tuple[float, float]:
    """How far the reference says that steering moves log-probabilities, and how far the engine is from it, in nats."""
    with_it, without = [await reference.best(trial, plan) for plan in (trial.plan, PLAIN)]
    movement = float(np.abs(with_it - without).max())
    if not movement >= LEAST_MOVEMENT:
        raise StartupError(f"self-test failed: strong steering moves log-probabilities by only {movement:.1e} nats")
    return movement, await _error(reference, trial, trial.plan)


async def _readout_error(reference: _Reference, trial: _Trial) -> float:
    """Largest difference of readouts, in standard deviations of each; infinite when one is missing."""
    n_tokens = len(reference.prompt) + len(trial.generated)
    found = await reference.answer(trial.generated, trial.plan)
    # The last generated token is not fed back.
    expected = found.scores(n_tokens)[:-1]
    measured = trial.track.scores(0, n_tokens - 1)
    error = np.abs(measured - expected).max(axis=0) / np.maximum(expected.std(axis=0), np.finfo(np.float32).tiny)
    return float(error.max()) if np.isfinite(error).all() else float("inf")
