"""Calls of the in-process LLM, and what Hugging Face says that they must come to."""
