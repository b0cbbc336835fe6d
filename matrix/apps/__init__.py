"""What an experiment talks to, as Ray Serve apps: model engines, each replica with a port of its own."""
