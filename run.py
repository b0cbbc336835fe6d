"""Run one experiment: `python run.py [overrides]`, `python run.py --help`.

Hydra composes conf/ and the command line, matrix.compose makes a checked RunSpec of it, matrix.run executes it.
"""

from matrix.cli import run

if __name__ == "__main__":
    run()
