"""Servers of our own with OpenAI's API: the simulated engine, and gateways to other vendors' APIs."""
