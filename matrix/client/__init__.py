"""The client of every model server: one shared HTTP session, retries and endpoints."""
