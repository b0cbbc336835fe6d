"""Other vendors' APIs behind OpenAI's."""
