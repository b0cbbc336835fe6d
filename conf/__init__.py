"""The config groups; a package, so that `pkg://matrix.conf` can stand in a search path of Hydra."""
