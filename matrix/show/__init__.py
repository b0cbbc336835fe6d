"""Conversations of a run, for people to read: on the terminal, as a page of HTML, as a table's cell."""
