"""matrix: one composed Hydra config, one experiment of LLM generation at scale."""

__version__ = "0.1.0"
