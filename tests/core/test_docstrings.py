"""Every public module, class, function and method says what it is."""

import ast
from pathlib import Path

import nas

ROOTS = [Path(nas.__file__).parent / name for name in (".", "report", "cli", "blocks", "evaluators", "optimizers", "spaces")]
FILES = sorted({path for root in ROOTS for path in root.glob("*.py")})


def undocumented(path: Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [] if ast.get_docstring(tree) or not tree.body or path.name == "__init__.py" else [f"{path.name}: the module"]
    nodes = [node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    return found + [f"{path.name}: {node.name}" for node in nodes if not node.name.startswith("_") and not ast.get_docstring(node)]


def test_every_public_module_class_and_function_has_a_docstring() -> None:
    assert len(FILES) > 80
    missing = [line for path in FILES for line in undocumented(path)]
    assert not missing, "\n".join(missing)


def test_every_public_method_of_the_main_objects_has_a_docstring() -> None:
    from nas import callbacks, explain, findings, job, problem, protocols, result, space, study, trial

    missing = [
        f"{module.__name__}: {node.name}.{method.name}"
        for module in (callbacks, explain, findings, job, problem, protocols, result, space, study, trial)
        for node in ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
        for method in node.body
        if isinstance(method, ast.FunctionDef) and not method.name.startswith("_") and not ast.get_docstring(method)
    ]
    assert not missing, "\n".join(missing)
