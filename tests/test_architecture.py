"""The rules of docs/architecture.md that a machine can check: who imports whom, what stays lazy, how long files get."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.checkout import ROOT, files

# From the bottom up: a module imports from layers below its own, and from its own package.
LAYERS = (
    {"errors"},
    {"spec", "wire"},
    {"client", "data", "sandbox", "containers"},
    {"serving", "show"},
    {"cluster", "apps", "models", "pipelines", "tracking", "jobs"},
    {"agents"},
    {"check"},
    {"run", "compose", "api"},
    {"inference", "commands"},
    {"cli"},
    # What the package hands out by its own name.
    {"__init__"},
)

# The exceptions: (package, what it may import of its own layer).
NEIGHBOURS = {
    # The row is what the client answers with.
    ("client", "data.rows"),
    # An engine gets its model as a folder.
    ("apps", "models"),
    # Both run what nobody trusts.
    ("containers", "sandbox.cgroups"),
    ("containers", "sandbox.filter"),
    # Programs deploy by the same overrides as the command line.
    ("api", "compose"),
}

# The only ones that know Hydra: everything else gets a RunSpec.
KNOW_HYDRA = {"compose", "cli"}
HYDRA = {"hydra", "omegaconf"}

# Take a second or more to import, or are not installed everywhere: imported by the function that needs them.
HEAVY = {"ray", "torch", "vllm", "transformers", "wandb", "datasets", "sympy", "math_verify"}
# Runs as a package of its own (`inside`) in a sandbox, where matrix isn't: within it imports are relative, and apart from
# that there is nothing but the standard library.
ALONE = ROOT / "matrix" / "sandbox" / "inside"
# Files that are only ever imported inside a Ray actor or a subprocess of their own.
RUN_ELSEWHERE: set[str] = set()

MAX_LINES = 400
# Made by protoc.
GENERATED = {"matrix/wire/openai_pb2.py", "matrix/wire/openai_pb2_grpc.py"}

MODULES = sorted((ROOT / "matrix").rglob("*.py"))


def imports(tree: ast.AST, *, lazy: bool = True, own: str | None = None) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) of everything imported; `from a import b` gives `a.b`.

    Args:
        tree: The parsed module.
        lazy: Also what importing the module doesn't load: imports in functions and under `if TYPE_CHECKING`.
        own: Dotted name of the package that it stands in, if it may say so by a relative import.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 or (own and node.level == 1), f"line {node.lineno}: relative import"
            package = ".".join(filter(None, [own if node.level else None, node.module]))
            yield from ((node.lineno, f"{package}.{alias.name}") for alias in node.names)
        elif lazy or not (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or is_type_checking(node)
        ):
            yield from imports(node, lazy=lazy, own=own)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def layer(package: str) -> int:
    for height, packages in enumerate(LAYERS):
        if package in packages:
            return height
    pytest.fail(f"matrix.{package} stands in no layer: add it to LAYERS, and to docs/architecture.md")


def package_of(path: Path) -> str:
    """Return the part of matrix that a file belongs to: its folder, or its own name at the top."""
    return path.relative_to(ROOT / "matrix").with_suffix("").parts[0]


def may_import(package: str, imported: str) -> bool:
    """Whether a package may import `imported`, a dotted name below `matrix`."""
    target = imported.partition(".")[0]
    if target in {package, "__version__"} or layer(target) < layer(package):
        return True
    return is_below(imported, {what for who, what in NEIGHBOURS if who == package})


def is_below(name: str, parents: Iterable[str]) -> bool:
    """Whether a dotted name is one of the parents or lies in one."""
    return any(f"{name}.".startswith(f"{parent}.") for parent in parents)


def all_imports(*, lazy: bool = True) -> Iterator[tuple[Path, str, str]]:
    """Yield (file, where it is, dotted name) of every import in matrix/."""
    for path in MODULES:
        own = "matrix.sandbox.inside" if path.parent == ALONE else None
        for line, name in imports(ast.parse(path.read_text()), lazy=lazy, own=own):
            yield path, f"{path.relative_to(ROOT)}:{line} imports {name}", name


def test_imports_go_one_way() -> None:
    wrong = [
        where
        for path, where, name in all_imports()
        if name.startswith("matrix.") and not may_import(package_of(path), name.removeprefix("matrix."))
    ]
    assert not wrong, "\n".join(wrong)


def test_neighbours_are_needed() -> None:
    used = {(package_of(path), name) for path, _, name in all_imports()}
    unused = [
        (who, what)
        for who, what in NEIGHBOURS
        if not any(who == package and is_below(name, {f"matrix.{what}"}) for package, name in used)
    ]
    assert not unused, f"no longer needed, take them out of NEIGHBOURS: {unused}"


def test_hydra_stays_at_the_door() -> None:
    wrong = [
        where for path, where, name in all_imports() if is_below(name, HYDRA) and package_of(path) not in KNOW_HYDRA
    ]
    assert not wrong, "\n".join(wrong)


def test_the_inside_of_a_sandbox_stands_alone() -> None:
    wrong = [
        where
        for path, where, name in all_imports()
        if path.parent == ALONE
        and not is_below(name, {"matrix.sandbox.inside"})
        and name.partition(".")[0] not in sys.stdlib_module_names
    ]
    assert not wrong, "\n".join(wrong)


def test_heavy_imports_are_lazy() -> None:
    wrong = [
        where
        for path, where, name in all_imports(lazy=False)
        if is_below(name, HEAVY) and path.relative_to(ROOT).as_posix() not in RUN_ELSEWHERE
    ]
    assert not wrong, "\n".join(wrong)


def test_files_read_in_one_sitting() -> None:
    lengths = {
        path: len((ROOT / path).read_text().splitlines())
        for path in files()
        if path.suffix == ".py" and str(path) not in GENERATED
    }
    long = {str(path): length for path, length in lengths.items() if length > MAX_LINES}
    assert not long


def test_no_registry_host_and_no_path_of_a_machine() -> None:
    # Put together here, so that this file is not found itself.
    hosts = ["pypi" + ".org", "files.python" + "hosted", "registry." + "npmjs", "deb." + "debian"]
    # `someone` is the name for examples.
    places = ["root" + "/", "farm" + "/", "home" + r"/(?!someone\b)\w", "work" + "/(?:main|shared)"]
    forbidden = re.compile("|".join([*map(re.escape, hosts), *(rf"(?<![\w.~$}}-])/{place}" for place in places)]))
    found = []
    for path in files():
        content = (ROOT / path).read_bytes()
        if b"\0" in content:
            continue
        for number, text in enumerate(content.decode().splitlines(), start=1):
            if match := forbidden.search(text):
                found.append(f"{path}:{number}: {match.group()}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("package", "imported", "allowed"),
    [
        ("data", "errors.DataError", True),
        ("data", "data.rows.Row", True),
        ("data", "client.http.Client", False),
        ("client", "data.rows.Row", True),
        ("client", "data.rowsmith.Row", False),
        ("client", "data.readers.read", False),
        ("spec", "data.rows.Row", False),
        ("compose", "cli.main", False),
        ("tracking", "__version__", True),
    ],
)
def test_the_layers_themselves(package: str, imported: str, allowed: bool) -> None:
    assert may_import(package, imported) is allowed


def test_lazy_imports_are_told_from_eager_ones() -> None:
    tree = ast.parse(
        "import a\n"
        "if TYPE_CHECKING:\n    import b\n"
        "def f():\n    import c\n"
        "class K:\n    from d.e import f\n    async def g(self):\n        import h\n"
        "try:\n    import i.j\nexcept ImportError:\n    pass\n"
    )
    assert [name for _, name in imports(tree, lazy=False)] == ["a", "d.e.f", "i.j"]
    assert [name for _, name in imports(tree)] == ["a", "b", "c", "d.e.f", "h", "i.j"]
