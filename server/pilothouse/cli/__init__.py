"""The command `pilothouse`."""
