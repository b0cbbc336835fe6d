"""The gRPC face of an engine: its messages, and what they are as OpenAI's JSON."""
