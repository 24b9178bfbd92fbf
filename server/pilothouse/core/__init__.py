"""Words and messages that every other room shares: sites, plans, errors, configuration. No vLLM, no web framework."""
