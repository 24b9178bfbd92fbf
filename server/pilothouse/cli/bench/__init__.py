"""`pilothouse bench`: what steering and reading cost beside plain vLLM, measured in pairs over HTTP."""
