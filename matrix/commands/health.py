"""`matrix check_health`."""

from __future__ import annotations

from matrix.cluster.inside import inside
from matrix.commands.arguments import flag, number, split
from matrix.commands.status import CLUSTER, connected, of_jobs
from matrix.run.remote import run_there

HELP = """\
usage: matrix check_health app=NAME [prompt=TEXT] [use_chat=false] [use_tools=true] [use_grpc=true] [timeout_s=60]
                           [image=NAME] [cluster.address=IP:PORT] [cluster.token_path=FILE] [cluster.id=NAME]
                           [cluster.root=FOLDER]

Ask each replica of an app something, and the front door: a model the prompt, a sandbox to run print(1+1), an
app of containers to run echo hello in one (image=NAME: in one of that image, else of the first of its engine.images).
Exit code 0 if all answer, 1 if one doesn't.
"""

_OWN = {
    "app": None,
    "prompt": "What is the capital of France? Answer in one word.",
    "use_chat": "true",
    "use_tools": "false",
    "use_grpc": "false",
    "image": "",
    "timeout_s": "60",
}


def main(arguments: list[str]) -> int:
    """Run it; returns the exit code."""
    own, _ = split(arguments, _OWN | CLUSTER, overrides=False)
    options = {name: flag(own, name) for name in ("use_chat", "use_tools", "use_grpc")}
    timeout_s = number(own, "timeout_s")
    folder = of_jobs(own)
    if folder is not None and inside() is None:
        return run_there(folder.spec(), ["check_health", *arguments], start=False)
    with connected(own) as cli:
        found = cli.check_health(own["app"], prompt=own["prompt"], image=own["image"], timeout_s=timeout_s, **options)
    for endpoint in found["endpoints"]:
        word = "ok" if endpoint["ok"] else "FAILED"
        print(
            f"{word}  {endpoint['url']}  {endpoint['seconds']:.2f} s  {endpoint.get('answer', endpoint.get('error'))}"
        )
    print(f"app {found['app']} is {'healthy' if found['healthy'] else 'NOT healthy'}")
    return 0 if found["healthy"] else 1
