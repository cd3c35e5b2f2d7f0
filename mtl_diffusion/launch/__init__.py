"""Whether this process may start a run, and when it must stop."""
