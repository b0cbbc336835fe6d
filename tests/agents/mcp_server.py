"""An MCP server for tests: `python mcp_server.py stdio|http [PORT]`; it keeps its process id and its calls in NOTES."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from mcp.server.mcpserver import Image, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import EmbeddedResource, ResourceLink, TextContent, TextResourceContents

server = MCPServer("test", log_level="ERROR")
NOTES = Path(os.environ["NOTES"])


def note(text: str) -> None:
    with NOTES.open("a") as file:
        file.write(f"{text}\n")


@server.tool()
def add(a: int, b: int = 1) -> int:
    """Add two numbers."""
    note(f"add {a} {b}")
    return a + b


@server.tool(name="text.echo")
async def echo(text: str, after: float = 0) -> str:
    """Say it again."""
    note(f"echo {text}")
    await asyncio.sleep(after)
    return text


@server.tool()
def fails() -> str:
    """Always fails."""
    raise ToolError("the shop is closed")


@server.tool()
def crashes() -> str:
    """Always crashes."""
    return str({}["shop"])


@server.tool()
def pictures() -> list:
    """Gives other things than text."""
    return [
        "one",
        Image(data=b"x" * 300, format="png"),
        ResourceLink(type="resource_link", name="list", uri="shop://list"),
        EmbeddedResource(
            type="resource", resource=TextResourceContents(uri="shop://a", text="inside", mime_type="text/plain")
        ),
        TextContent(type="text", text="two"),
    ]


@server.tool()
def environment(name: str) -> str:
    """One of its environment variables."""
    return os.environ.get(name, "not set")


@server.tool()
def pid() -> str:
    """Its process."""
    return str(os.getpid())


@server.tool()
async def dies_once() -> str:
    """Ends the process at the first call, answers at the second."""
    if "died" not in NOTES.read_text():
        note("died")
        os._exit(1)
    return "alive"


@server.tool()
async def dies() -> str:
    """Ends the process at every call."""
    note("died again")
    os._exit(1)


note(f"started {os.getpid()}")
if sys.argv[1] == "stdio":
    server.run("stdio")
elif sys.argv[1] == "broken":
    print("Traceback: no shop here", file=sys.stderr)
    sys.exit(1)
else:
    server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[2]), stateless_http=sys.argv[1] == "stateless")
