"""Helpers of the tests of `deploy/`: Prometheus, something for it to scrape, and what the dashboards ask it."""
