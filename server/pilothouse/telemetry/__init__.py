"""Where finished requests become metrics. The only room that imports prometheus_client."""
