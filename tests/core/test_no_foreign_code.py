"""A static check: nothing here loads pickled objects, runs text as code, or fetches past huggingface_hub."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("nas", "blocks", "evaluators", "optimizers", "spaces", "examples", "benchmarks")

MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml", "urllib.request", "requests", "httpx", "aiohttp", "torch.hub"}
CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load", "torch.save", "torch.hub.load", "torch.jit.load", "pandas.read_pickle"}
METHODS = {"exec_module", "read_pickle", "to_pickle", "extractall"}
ALLOWED = {("nas/names.py", "exec_module")}  # `--space FILE.py`: the file that the user names on the command line


def sources() -> Iterator[Path]:
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if not path.is_symlink() and not any(parent.is_symlink() for parent in path.parents):
                yield path


def complaints(code: str, name: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found += [f"import {alias.name}" for alias in node.names if _banned(alias.name)]
        elif isinstance(node, ast.ImportFrom) and (_banned(node.module or "") or any(_banned(f"{node.module}.{alias.name}") for alias in node.names)):
            found.append(f"from {node.module} import {', '.join(alias.name for alias in node.names)}")
        elif isinstance(node, ast.Call):
            found += _call(node, name)
    return found


def _banned(module: str) -> bool:
    return any(module == banned or module.startswith(banned + ".") for banned in MODULES)


def _call(node: ast.Call, name: str) -> list[str]:
    called = ast.unparse(node.func)
    arguments = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    found = [called] if called in CALLS or (called.split(".")[-1] in METHODS and (name, called.split(".")[-1]) not in ALLOWED) else []
    if called in ("np.load", "numpy.load") and arguments.get("allow_pickle") != "False":
        found.append(f"{called} without allow_pickle=False")
    found += [f"{called}({key}=...)" for key in ("trust_remote_code", "shell") if arguments.get(key, "False") != "False"]
    if arguments.get("use_safetensors", "True") != "True":
        found.append(f"{called}(use_safetensors={arguments['use_safetensors']})")
    return found


@pytest.mark.parametrize("path", list(sources()), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_file_can_run_foreign_code(path: Path) -> None:
    assert complaints(path.read_text(encoding="utf-8"), str(path.relative_to(ROOT))) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle", "from joblib import load", "import yaml", "torch.load(f, weights_only=True)", "torch.save(x, f)", "np.load(f)",
        "np.load(f, allow_pickle=True)", "eval(text)", "exec(text)", "X.from_pretrained(f, trust_remote_code=True)", "subprocess.run(c, shell=True)",
        "from urllib import request", "tar.extractall()", "X.from_pretrained(f, use_safetensors=False)", "spec.loader.exec_module(m)", "from torch import hub",
    ],
)  # fmt: skip
def test_the_check_sees_what_it_is_for(code: str) -> None:
    assert complaints(code, "x.py")


@pytest.mark.parametrize("code", ["model.eval()", "np.load(f, allow_pickle=False)", "re.compile(x)", "from huggingface_hub import snapshot_download"])
def test_the_check_lets_harmless_code_pass(code: str) -> None:
    assert complaints(code, "x.py") == []
