"""Helpers of the tests against a real server."""
