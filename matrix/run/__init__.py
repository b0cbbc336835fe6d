"""The life of one run: from a checked spec to rows, metrics and a summary in a run dir."""
