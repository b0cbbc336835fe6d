"""Other vendors' APIs behind OpenAI's: one module for each (`matrix.serving.backends` knows them)."""
