"""`LLM`: vLLM's class of that name, with steering and probes for every prompt and what came of them on the outputs."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pilothouse.api.plans import Ask, Planner
from pilothouse.api.registry import Registry
from pilothouse.api.scoring import remembered
from pilothouse.api.session import Session, Surroundings
from pilothouse.core.config import EngineLayout, Limits, ServerConfig
from pilothouse.core.errors import BadRequest, StartupError
from pilothouse.core.places import is_on_hub, is_url, local_path
from pilothouse.core.records import RequestOutcome
from pilothouse.core.url_errors import masked
from pilothouse.engine.llm import PlannedLLM, count_conversations, count_prompts
from pilothouse.harbor.paths import model_dir, monitors_file, probes_dir, saes_dir, vectors_dir
from pilothouse.harbor.served import SETTINGS
from pilothouse.offline import fields

ROUTE = "offline"

Place = str | Path
Places = Iterable[Place] | Place | None


class LLM(PlannedLLM):
    """vLLM's `LLM`: the same arguments, methods and outputs, and the two fields of a request beside them.

    Each `CompletionOutput` has `steering`, the receipts, and `probes`, as a choice has them over HTTP; None where they
    were not asked for. A request of which anything was left out raises EngineGap instead of returning.
    """

    def __init__(
        self,
        model: Place | None = None,
        *,
        vectors: Places = None,
        probes: Places = None,
        saes: Places = None,
        monitors: Place | None = None,
        sites: Iterable[int] | None = None,
        max_plans: int = 64,
        max_probes: int = EngineLayout.readouts,
        chain_steps: int = EngineLayout.chain_steps,
        max_chains: int = EngineLayout.chains,
        max_edits: int = Limits.max_edits,
        max_strength: float | None = None,
        self_test: bool = True,
        **options: Any,
    ) -> None:
        """model: a path or a name of the hub; without one, the embedded model, with its artefacts where none are given.

        The other arguments are those of `pilothouse serve`, and `options` those of vLLM's `LLM`. ArtefactError or
        StartupError for what cannot work, and when steering or reading differs from the reference.
        """
        if model is None:
            own = vectors is None and probes is None and saes is None
            monitors = monitors or (monitors_file() if own else None)
            vectors = vectors_dir() if vectors is None else vectors
            probes = probes_dir() if probes is None else probes
            saes = saes_dir() if saes is None else saes
            options = {**SETTINGS, **options}
        layout = EngineLayout(
            sites=None if sites is None else tuple(sorted(set(sites))),
            rows=EngineLayout.rows_for(max_plans),
            chains=max_chains,
            chain_steps=chain_steps,
            readouts=max_probes,
        )
        config = ServerConfig(
            vectors=_places(vectors),
            probes=_places(probes),
            saes=_places(saes),
            monitors=None if monitors is None else os.fspath(monitors),
            limits=Limits(max_edits=max_edits, max_strength=max_strength),
            self_test=self_test,
        )
        super().__init__(os.fspath(model or model_dir()), layout, test=self_test, **options)
        try:
            self._pilothouse_planner, self._pilothouse_around = self._wired(config, layout)
        except BaseException:
            self.close()
            raise

    def _wired(self, config: ServerConfig, layout: EngineLayout) -> tuple[Planner, Surroundings]:
        planner = Planner(Registry(config, self.pilothouse_shape), layout, config.limits)
        if self.pilothouse_self_test is not None:
            planner.strength_limit.lengths = self.pilothouse_self_test.lengths
        tokenizer = self.renderer.tokenizer
        around = Surroundings(
            sink=_Nowhere(),
            decode=_number if tokenizer is None else remembered(lambda token: str(tokenizer.decode([token]))),
            bos_token_id=None if tokenizer is None else tokenizer.bos_token_id,
            max_names_in_label=config.limits.max_steering_names_in_label,
        )
        return planner, around

    def generate(
        self, prompts: Any, sampling_params: Any = None, *, steering: Any = None, probes: Any = None, **options: Any
    ) -> list[Any]:
        """vLLM's `generate` under plans.

        steering: a list of edits as in the field of that name, for all prompts, or a list of such lists and None, one
        a prompt; probes: likewise. In `inline.layers`, tensors, arrays and numbers of layers are taken too. BadRequest,
        before anything runs, for what cannot be done; EngineGap when the engine left something out.
        """
        sessions = self._sessions(steering, probes, count_prompts(prompts))
        with self.pilothouse_client.carrying(sessions):
            return list(super().generate(prompts, sampling_params, **options))

    def chat(
        self,
        messages: Any,
        sampling_params: Any = None,
        *args: Any,
        steering: Any = None,
        probes: Any = None,
        **options: Any,
    ) -> list[Any]:
        """vLLM's `chat` under plans, one for all conversations or one for each: see `generate`."""
        sessions = self._sessions(steering, probes, count_conversations(messages))
        with self.pilothouse_client.carrying(sessions):
            return list(super().chat(messages, sampling_params, *args, **options))

    def enqueue(
        self,
        prompts: Any,
        sampling_params: Any = None,
        *args: Any,
        steering: Any = None,
        probes: Any = None,
        **options: Any,
    ) -> list[str]:
        """vLLM's `enqueue` under plans; `wait_for_completion` returns the outputs with what came of them."""
        sessions = self._sessions(steering, probes, count_prompts(prompts))
        with self.pilothouse_client.carrying(sessions):
            return list(super().enqueue(prompts, sampling_params, *args, **options))

    def enqueue_chat(
        self,
        messages: Any,
        sampling_params: Any = None,
        *args: Any,
        steering: Any = None,
        probes: Any = None,
        **options: Any,
    ) -> list[str]:
        """vLLM's `enqueue_chat` under plans: see `enqueue`."""
        sessions = self._sessions(steering, probes, count_conversations(messages))
        with self.pilothouse_client.carrying(sessions):
            return list(super().enqueue_chat(messages, sampling_params, *args, **options))

    def beam_search(self, *args: Any, steering: Any = None, probes: Any = None, **options: Any) -> Any:
        """vLLM's; beams are rebuilt at every token and cannot carry a plan."""
        return _plainly("beam_search", super().beam_search, steering, probes)(*args, **options)

    def encode(self, *args: Any, steering: Any = None, probes: Any = None, **options: Any) -> Any:
        """vLLM's, without plans."""
        return _plainly("encode", super().encode, steering, probes)(*args, **options)

    def embed(self, *args: Any, steering: Any = None, probes: Any = None, **options: Any) -> Any:
        """vLLM's, without plans."""
        return _plainly("embed", super().embed, steering, probes)(*args, **options)

    def classify(self, *args: Any, steering: Any = None, probes: Any = None, **options: Any) -> Any:
        """vLLM's, without plans."""
        return _plainly("classify", super().classify, steering, probes)(*args, **options)

    def score(self, *args: Any, steering: Any = None, probes: Any = None, **options: Any) -> Any:
        """vLLM's, without plans."""
        return _plainly("score", super().score, steering, probes)(*args, **options)

    def _sessions(self, steering: Any, probes: Any, n_prompts: int) -> list[Session]:
        """A session a prompt; whatever is wrong with any of them is said before the engine hears of the first."""
        asks = asks_for(self._pilothouse_planner, steering, probes, n_prompts)
        name = self.pilothouse_shape.model
        return [Session(ask, ROUTE, name, self._pilothouse_around) for ask in asks]


def asks_for(planner: Planner, steering: Any, probes: Any, n_prompts: int) -> list[Ask]:
    """What each of `n_prompts` prompts asks for. BadRequest names the first thing wrong and, where each prompt has its
    own, the prompt."""
    steerings = fields.steering_by_prompt(steering, n_prompts)
    probings = fields.probes_by_prompt(probes, n_prompts)
    if steerings is None and probings is None:
        return [_ask(planner, steering, probes)] * n_prompts
    asks = []
    for number in range(n_prompts):
        own = (fields.value_of(steerings, steering, number), fields.value_of(probings, probes, number))
        try:
            asks.append(_ask(planner, *own))
        except BadRequest as error:
            raise BadRequest(f"prompt {number}: {error}", error.param) from None
    return asks


def _ask(planner: Planner, steering: Any, probes: Any) -> Ask:
    given: dict[str, Any] = {}
    if steering is not None:
        given[fields.STEERING] = fields.plain_steering(steering)
    if probes is not None:
        given[fields.PROBES] = fields.plain_probes(probes)
    return planner.plan(given)


def _plainly(name: str, method: Callable[..., Any], steering: Any, probes: Any) -> Callable[..., Any]:
    """`method`, for callers that ask for nothing that it cannot carry; BadRequest for others."""
    for field, value in ((fields.STEERING, steering), (fields.PROBES, probes)):
        if value is not None:
            raise BadRequest(f"{name} can be neither steered nor probed; generate and chat can", field)
    return method


def _places(places: Places) -> tuple[str, ...]:
    """Places as the registry takes them; StartupError for one that is not there, before a model is loaded for it."""
    given = () if places is None else (places,) if isinstance(places, str | Path) else tuple(places)
    found = tuple(os.fspath(place) for place in given)
    for place in found:
        if not (is_on_hub(place) or is_url(place)) and not local_path(place).exists():
            raise StartupError(f"{masked(place)}: there is no such file or folder")
    return found


def _number(token: int) -> str:
    return f"<{token}>"


class _Nowhere:
    """An `OutcomeSink`: whoever called has the outcome in hand."""

    def observe(self, outcome: RequestOutcome) -> None:
        return None
