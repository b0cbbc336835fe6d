"""The front door: one HTTP address of a cluster that reaches every app, and its one Prometheus endpoint."""
