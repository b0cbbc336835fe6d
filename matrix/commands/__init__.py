"""Commands beside `matrix run`: apps and clusters from the command line."""
