"""The only room that knows vLLM: its workers, scheduler, cache keys, client and OpenAI handlers, one seam a module."""
