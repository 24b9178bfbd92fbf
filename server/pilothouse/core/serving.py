"""The seam between HTTP and the engine: what the engine's handlers call, and what the API room implements."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from pilothouse.core.messages import StepCost
from pilothouse.core.plans import Plan
from pilothouse.core.sites import Float32, ModelShape
from pilothouse.core.tracks import PromptTrack


class RequestSession(Protocol):
    """One HTTP request with its plan, from validation to the last byte of its response.

    A choice's number is (number of its prompt) x n + (number of its sequence), as in OpenAI's API.
    """

    plan: Plan

    @property
    def asked(self) -> str | None:
        """The field by which the client, or the preset that it chose, wants something done; None for default probes,
        which are given up where need be."""

    def shows_tokens(self, logprobs: bool) -> bool:
        """Whether the client is to see scores of tokens as they come, should its answer be streamed; logprobs: it asks
        for log-probabilities, which scores go with."""

    def add_prompt(self, track: PromptTrack) -> None:
        """Called once for each prompt, in order, just before it goes to the engine."""

    def decorate(self, index: int) -> dict[str, Any]:
        """The keys that finished choice `index` carries beside OpenAI's; EngineGap when the engine left out what the
        client asked for."""

    def token_scores(self, index: int) -> list[dict[str, Any] | None]:
        """For each generated token so far, what `logprobs.content[]` shows under `probe_scores`."""

    def rewrite_event(self, event: str) -> Iterable[str]:
        """One server-sent event of the stream with the scores that are known by now put in, in parts that are to be
        sent one after the other; EngineGap, as `decorate`, in the place of the event that ends a choice: the stream has
        failed."""

    def new_scores(self, index: int, finished: bool) -> dict[str, Any]:
        """For streams that `rewrite_event` does not know: by probe, the scores of the tokens of choice `index` that
        were there at the last call, as far as known and not yet given; at the finish all that are left. Empty when the
        client wants no scores of tokens."""

    def set_response_id(self, response_id: str) -> None:
        """Told as soon as the response's id is known."""

    def close(self, error: str | None = None) -> None:
        """Called when every sequence has ended, however it ended; only the first call counts.

        `error` is NO_TOKEN_IDS for a prompt that was never added, having no token ids: nothing is shown from then on.
        It is ABORTED where the client has gone, and REFUSED where the request was a bad one: nothing is recorded of it.
        """


class RequestExtension(Protocol):
    """Makes sessions. One per API process."""

    def open(self, fields: Mapping[str, Any], route: str, model_name: str) -> RequestSession:
        """Validate a request's extra top-level fields; raises BadRequest."""

    def model_names(self, model: str) -> list[str]:
        """Further names that requests may call `model` by, each with a meaning of its own for `open`."""

    def open_default(self, route: str, model_name: str) -> RequestSession:
        """A session for traffic that arrives by routes without our fields: the server's default probes."""

    def spent(self, model_name: str, cost: StepCost) -> None:
        """Told what steps of the engine took of its worker's time, each once."""


class ActivationSource(Protocol):
    """Reads activations through the serving engine's own sites."""

    @property
    def shape(self) -> ModelShape:
        """The model that is read."""

    def encode(self, item: str | Sequence[Mapping[str, str]], add_generation_prompt: bool = False) -> list[int]:
        """Token ids of a raw text (BOS as the tokenizer adds it) or of chat messages (by the chat template)."""

    def read(self, prompts: Sequence[Sequence[int]], layers: Sequence[int]) -> list[dict[int, Float32]]:
        """For each prompt, the stream [n_tokens, d_model] float32 at each layer, before any edit."""

    def close(self) -> None:
        """Shut the engine down."""


@dataclass(frozen=True, eq=False)
class Generated:
    """What a model answered to one prompt under its plan.

    token_ids: the generated tokens, EOS included; text: what they read as, without special tokens; readouts: raw
    readouts [prompt tokens + generated tokens, readouts of the plan], NaN at the last token, which is never fed back.
    """

    token_ids: list[int]
    text: str
    finish_reason: str
    readouts: Float32


class SteeredModel(Protocol):
    """Generates and scores under plans, offline. Plans of a batch may differ: one a prompt."""

    @property
    def shape(self) -> ModelShape:
        """The model that is steered."""

    def encode(self, item: str | Sequence[Mapping[str, str]], add_generation_prompt: bool = False) -> list[int]:
        """Token ids of a raw text (BOS as the tokenizer adds it) or of chat messages (by the chat template)."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of tokens, special ones left out."""

    def generate(self, prompts: Sequence[Sequence[int]], plans: Sequence[Plan], max_tokens: int) -> list[Generated]:
        """The greedy continuation of each prompt, of at most `max_tokens` tokens."""

    def logprobs(self, prompts: Sequence[Sequence[int]], plans: Sequence[Plan]) -> list[Float32]:
        """For each prompt the log-probability, in nats, of each of its tokens given those before it, [n_tokens]; NaN
        for the first, which nothing predicts."""

    def close(self) -> None:
        """Shut the engine down."""


@runtime_checkable
class TokenLocator(Protocol):
    """A source of activations that can also tell which characters a token stands for."""

    def offsets(self, item: str | Sequence[Mapping[str, str]]) -> list[tuple[int, int]]:
        """For each token of `encode(item)`, the characters [start, stop) that it stands for: of the text, or of the
        content of the chat's last message. Empty for a token that stands for none of them. ArtefactError where the
        tokenizer or the chat template does not let one say."""
