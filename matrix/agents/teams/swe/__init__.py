"""Repairs a repository by shell commands in a container, and what SWE-bench wants to have of it."""
