"""No model: answers of a length and with a latency that are drawn."""
