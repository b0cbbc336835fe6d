"""tau2-bench (Barres et al. 2025, arXiv:2506.07982): a simulated user, an agent with tools, and what these change.

Reads the benchmark's own files; tools, effects and rewards are as there (checked against its code, see the tests).
"""
