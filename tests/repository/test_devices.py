"""Tensors that methods and the runtime make name their device: a script may have set another for what names none."""

import ast

from tests.repository.tree import modules

PLACES = ("accel.methods.", "accel.runtime.")
FACTORIES = {"arange", "empty", "eye", "full", "linspace", "ones", "rand", "randn", "tensor", "zeros"}


def unnamed(source: str) -> list[int]:
    """Lines of the calls in a source text that make a tensor and name no device."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "torch"
        and node.func.attr in FACTORIES
        and all(keyword.arg != "device" for keyword in node.keywords)
    ]


def test_every_tensor_names_its_device() -> None:
    sources = {module: path.read_text() for module, path in modules().items() if module.startswith(PLACES)}
    assert len(sources) > 20
    wrong = [f"{module}:{line}" for module, source in sources.items() for line in unnamed(source)]
    assert not wrong, f"these make a tensor and name no device: {wrong}"


def test_the_check_sees() -> None:
    source = 'x = torch.empty(2, pin_memory=True)\ny = torch.ones(2, device="cpu")\nz = torch.tensor([x])'
    assert unnamed(source) == [1, 3]
