"""Sparse autoencoders as their publishers store them: one module a format, found by `registry.detect`."""
