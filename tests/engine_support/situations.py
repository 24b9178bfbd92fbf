"""Situations that the parity tests put an engine into, beyond one batch that runs to its end."""

from __future__ import annotations

import numpy as np

from engine_support import plans as make
from engine_support.harness import Engine, Job, Result
from pilothouse.core.plans import Plan


def run_sampled(engine: Engine, prompt: list[int], plan: Plan, n: int, seed: int) -> list[Result]:
    """`n` sequences of one request, sampled."""
    job = engine.submit(prompt, plan, 10, n=n, temperature=1.0, seed=seed)
    engine.drain()
    return job.results


def run_with_aborts(engine: Engine, prompts: list[list[int]], plans: list[Plan], after: int) -> list[Job]:
    """All at once; every third request is given up after that many steps."""
    jobs = [engine.submit(prompt, plan, 20) for prompt, plan in zip(prompts, plans, strict=True)]
    for _ in range(after):
        engine.step()
    for job in jobs[::3]:
        engine.abort(job)
    engine.drain()
    return jobs


def take_every_place(engine: Engine, seed: int) -> tuple[list[list[int]], list[Plan], list[Result]]:
    """As many new plans at once as the engine has rows, and as many new probes as it has columns; their results."""
    rng = np.random.default_rng(seed)
    layout = engine.layout
    plans = [Plan((make.edit(rng, [1], "all", 2.0),)) for _ in range(layout.rows)]
    plans.append(Plan((), tuple(make.readout(rng, [2]) for _ in range(layout.readouts))))
    prompts = make.prompts(rng, len(plans), 20)
    return prompts, plans, engine.run(prompts, list(plans), 4)
