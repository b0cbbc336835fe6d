"""A stand-in for SGLang, which has no wheel without CUDA: its command line and its HTTP API, and no model."""
