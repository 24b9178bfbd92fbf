"""A server without an engine, what it serves, and what it ought to answer."""
