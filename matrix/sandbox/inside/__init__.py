"""What runs in a sandbox itself; it knows nothing but Python's standard library."""
