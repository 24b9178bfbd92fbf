"""Builds the Grafana dashboards in `deploy/grafana/dashboards` (`make dashboards`). Not part of what is installed."""
