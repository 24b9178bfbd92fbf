"""The model in this process, from a plain function call: vLLM's `LLM` with steering and probes."""

from pilothouse.offline.llm import LLM

__all__ = ["LLM"]
