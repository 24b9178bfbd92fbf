"""What clients meet: two request fields, the registry routes, the guard, and the sessions that the engine drives."""
