"""Pipelines: what is asked for each row, and what its answers are worth.

`prompt` turns a row into chat messages, `scorers` judges texts, `scoring_pool` runs the scorers that may hang in
processes that can be killed, and `metrics` sums rows up. All of it is free of Ray, servers and run dirs.
"""
