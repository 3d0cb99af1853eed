"""Which module imports which, and whether it may: the floors of the house as data, and a rule."""

import ast
import sys
from collections.abc import Iterator

# A module's floor is that of the longest name here that it lies under. "accel" is the public face alone: a
# module below it that no row covers has no floor, and the test asks for one.
FLOORS = {
    "accel.kernels": 0,
    "accel.errors": 1,
    "accel.pipelines": 1,
    # Commands that make the built-in model and measure it.
    "accel.pipelines.demo.training": 5,
    "accel.runtime": 2,
    "accel.methods": 3,
    "accel": 4,
    "accel.session": 4,
    "accel.config": 4,
    "accel.presets": 4,
    "accel.measure": 4,
    "accel.reporting": 4,
    "accel.integrations": 4,
    "accel.__main__": 5,
    "accel.cli": 5,
    "bench": 5,
}
OURS = {"accel", "bench", "kernels", "pipelines", "tests"}
# Floor 0 is tensors in, tensors out: it runs wherever torch does.
KERNEL_LIBRARIES = {"torch", "triton"}


def floor(module: str) -> int | None:
    """The floor a module stands on, or None where the table does not say."""
    name = module
    while name not in FLOORS:
        name, _, _ = name.rpartition(".")
        if name in ("", "accel"):
            return None
    return FLOORS[name]


def imported(source: str, module: str, is_package: bool, known: set[str]) -> Iterator[tuple[int, str]]:
    """Line and absolute module name of every import in a source text, wherever in the text it stands.

    `known` holds the names of our modules: it tells `from accel import session` (a module) from
    `from accel import enable` (a name in the public face).
    """
    package = module if is_package else module.rpartition(".")[0]

    def absolute(name: str, level: int) -> str:
        if level == 0:
            return name
        base = package.split(".")
        return ".".join([*base[: len(base) - level + 1], *([name] if name else [])])

    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = absolute(node.module or "", node.level)
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield node.lineno, full if full in known or full in FLOORS else base
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            name = node.args[0].value
            if called in ("import_module", "__import__") and isinstance(name, str):
                yield node.lineno, absolute(name.lstrip("."), len(name) - len(name.lstrip(".")))


def violations(source: str, module: str, is_package: bool, known: set[str]) -> list[str]:
    """What a module imports and may not, one line each."""
    here = floor(module)
    if here is None:
        return [f"{module} has no floor: add it to FLOORS"]
    wrong = []
    for line, target in imported(source, module, is_package, known):
        root = target.partition(".")[0]
        complaint = ""
        if root not in OURS:
            if here == 0 and root not in sys.stdlib_module_names and root not in KERNEL_LIBRARIES:
                complaint = "is not torch: kernels take tensors and give tensors"
        elif root in ("kernels", "pipelines"):
            complaint = f"is a second identity of accel.{target}"
        elif root == "tests" or (root == "bench" and not module.startswith("bench")):
            complaint = "is not part of what is installed"
        elif (there := floor(target)) is None:
            complaint = "has no floor: add it to FLOORS"
        elif there > here:
            complaint = f"stands on floor {there}, above floor {here}"
        if complaint:
            wrong.append(f"{module}:{line} imports {target}, which {complaint}")
    return wrong
