"""Finished requests by the thousand, and databases to keep them in that can be stopped, filled and locked."""
