"""Turns `model.source` into weights that an engine can load: packages, folders, S3 and the hub."""
