"""Helpers of the engine tests: a real engine driven offline, the Hugging Face reference, random plans."""
