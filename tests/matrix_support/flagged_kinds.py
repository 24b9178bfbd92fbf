"""The kinds of requests that need flags of the server: tool calls, priorities, reasoning."""

from __future__ import annotations

import json
import re
from typing import Any

from matrix_support.kinds import CHAT, COMPLETIONS, every
from matrix_support.requests import Answer, Choice, Kind

REASONING_FLAGS = (
    "--enforce-eager",
    "--reasoning-parser=granite",
    '--structured-outputs-config={"enable_in_reasoning": true}',
)
FLAGS = (
    "--enforce-eager",
    "--scheduling-policy=priority",
    "--enable-auto-tool-choice",
    "--tool-call-parser=hermes",
    "--enable-prompt-embeds",
    # Little of everything, so that requests wait for plans and are preempted for blocks.
    "--max-model-len=256",
    "--block-size=32",
    "--num-gpu-blocks-override=24",
    "--max-plans=3",
    "--max-chains=2",
)
CALL = r'<tool_call>\{"name": "go", "arguments": \{"to": "[A-Z][a-z]{2,4}"\}\}</tool_call>'
THOUGHT = r"Here is my thought process: [a-z]{3,8}\. Here is my response: [A-Z][a-z]{3,8}\."
TOOL = {
    "type": "function",
    "function": {
        "name": "go",
        "parameters": {
            "type": "object",
            "properties": {"to": {"type": "string"}},
            "required": ["to"],
            "additionalProperties": False,
        },
    },
}
SAMPLED: dict[str, Any] = {"temperature": 1.0, "seed": 5}


def is_call(answer: Answer, choice: Choice) -> bool:
    """Held to a call, which the parser took out of the text."""
    return not choice.text and choice.finish_reason == "tool_calls" and list(json.loads(choice.arguments)) == ["to"]


def is_thought(answer: Answer, choice: Choice) -> bool:
    """In two parts. What vLLM's parser makes of a stream that brings half of what divides them is its own affair."""
    if answer.streamed:
        return bool(choice.reasoning and choice.text)
    parts = (r"[a-z]{3,8}\.", choice.reasoning), (r"[A-Z][a-z]{3,8}\.", choice.text)
    return all(re.fullmatch(pattern, text.strip()) is not None for pattern, text in parts)


KINDS: dict[str, Kind] = {
    "tool calls": Kind(
        CHAT,
        {**SAMPLED, "max_tokens": 70, "tools": [TOOL], "structured_outputs": {"regex": CALL}},
        every(is_call),
        grammar=("regex", CALL),
    ),
    "priority scheduling": Kind(
        COMPLETIONS,
        {"max_tokens": 100},
        every(lambda answer, choice: len(choice.token_ids) == 100),
        priorities=True,
    ),
}

REASONING_KINDS: dict[str, Kind] = {
    "reasoning parser": Kind(
        CHAT,
        {**SAMPLED, "max_tokens": 60, "structured_outputs": {"regex": THOUGHT}},
        every(is_thought),
        grammar=("regex", THOUGHT),
    )
}
