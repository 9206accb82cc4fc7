"""Who imports whom, read from the sources; ``python -m tests.imports`` counts rooms, arrows, circles."""

import ast
import graphlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PACKAGES = ("composer", "decomposers", "conditions")
ORDER = (
    *("moved", "names", "mistakes", "devices", "storage", "terminal", "decomposition", "conditioning"),
    *("images", "scenes", "data", "networks", "diffusion", "autoregressive", "cascade", "prior", "tasks"),
    *("training", "published", "evaluation", "page", "commands", "studio"),
)
"""The rooms and single modules of `composer`, from the ground up: each imports only what stands before it."""

Imports = dict[str, set[str]]
"""Module -> the modules that it imports."""


def sources() -> list[Path]:
    return [path.relative_to(ROOT) for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def named(tree: ast.AST, package: Sequence[str]) -> Iterator[tuple[str, str]]:
    """What a tree imports, also by ``import_module("literal")``: the module, and the name that is taken from it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*parent, *([node.module] if node.module else [])])
            yield from ((module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from ((str(word.value), "") for word in node.args[:1] if isinstance(word, ast.Constant))


def read(path: Path) -> tuple[list[str], list[str]]:
    """The modules that a file imports: all of them, and those that importing the file runs."""
    tree, package = ast.parse((ROOT / path).read_text()), path.parent.parts
    lazy: list[Any] = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lazy += [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    whole = [module for module, _ in named(tree, package)]
    for node in lazy:
        node.body = []
    return whole, [module for module, _ in named(tree, package)]


def graph() -> Imports:
    """Our own modules and what of them each imports, wherever in the file it does."""
    modules = {".".join(path.with_suffix("").parts).removesuffix(".__init__"): path for path in sources()}
    found: Imports = {}
    for module, path in modules.items():
        pairs = named(ast.parse((ROOT / path).read_text()), path.parent.parts)
        inner = {f"{base}.{name}" if f"{base}.{name}" in modules else base for base, name in pairs}
        found[module] = {other for other in inner if other in modules} - {module}
    return found


def room(module: str) -> str:
    """The room of a module of `composer`, or the module itself where it stands alone."""
    return module.split(".")[1] if "." in module else module


def circle(imports: Imports) -> list[str]:
    """The modules of a circle of imports; none where there is no circle."""
    try:
        graphlib.TopologicalSorter(imports).prepare()
    except graphlib.CycleError as error:
        found: list[str] = error.args[1]
        return found
    return []


def floors(imports: Imports) -> int:
    """The longest way from a module down to one that imports none."""
    height: dict[str, int] = {}
    for module in graphlib.TopologicalSorter(imports).static_order():
        height[module] = 1 + max((height[other] for other in imports[module]), default=0)
    return max(height.values())


def main() -> None:
    imports = graph()
    rooms = {name: set[str]() for name in ORDER}
    for module, others in imports.items():
        if module.startswith("composer.") and room(module) in rooms:
            rooms[room(module)] |= {room(other) for other in others if other.startswith("composer.")} - {room(module)}
    print(f"modules: {len(imports)}, imports between them: {sum(map(len, imports.values()))}")
    print(f"rooms and single modules of composer: {len(rooms)}, arrows: {sum(map(len, rooms.values()))}")
    up = [(a, b) for a, others in rooms.items() for b in others if ORDER.index(b) > ORDER.index(a)]
    print(f"arrows up: {len(up)}, circles: {' -> '.join(circle(imports)) or 'none'}")
    if not circle(imports):
        print(f"floors of modules: {floors(imports)}, of rooms: {floors(rooms)}")


if __name__ == "__main__":
    main()
