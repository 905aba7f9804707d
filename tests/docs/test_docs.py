"""The documentation: its links lead somewhere, its snippets run, its site builds strictly without network."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from nas.names import OPTIMIZERS
from tests.core.test_cli import nas as command

ROOT = Path(__file__).parents[2]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
RUN = ["start", "concepts", "look", "own_optimizer", "tocsr", "references"]
"""Pages all of whose `python` and `console` blocks are run, in order, in one empty folder."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            found = (page.parent / path).resolve() if path else page
            assert found.exists(), f"{page.name}: {target}"
            if anchor:
                assert anchor in {_anchor(line) for line in found.read_text(encoding="utf-8").splitlines() if line.startswith("#")}, f"{page.name}: {target}"


@pytest.mark.parametrize("page", RUN)
def test_the_snippets_of_a_page_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(OPTIMIZERS, "_loaded", dict(OPTIMIZERS._loaded))  # what a page registers is gone after it
    names: dict[str, object] = {"__name__": "snippet"}
    for kind, text in re.findall(r"```(python|console)\n(.*?)```", (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8"), flags=re.DOTALL):
        if kind == "python":
            exec(compile(text, f"{page}.md", "exec"), names)  # noqa: S102  # our own documentation
        else:
            for line in text.strip().splitlines():
                done = command(*shlex.split(line)[1:])
                assert done.returncode == 0, f"{line}: {done.stderr}"


def test_whatever_the_reference_shows_on_the_site_is_linked_to_its_source_for_readers_of_a_clone() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    linked = [(ROOT / "docs" / target).resolve() for target in re.findall(r"\]\(([^)]+\.py)\)", text)]
    for shown in re.findall(r"^::: (\S+)$", text, flags=re.MULTILINE):
        module = shown if (ROOT / f"{shown.replace('.', '/')}.py").is_file() else shown.rpartition(".")[0]
        assert (ROOT / f"{module.replace('.', '/')}.py").resolve() in linked, shown


def test_every_verb_of_the_command_line_is_in_the_documentation() -> None:
    from typer.main import get_command

    from nas.cli.app import app

    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    missing = [verb for verb in get_command(app).commands if f"nas {verb}" not in text]  # type: ignore[attr-defined]
    assert not missing


@pytest.mark.slow
def test_the_site_builds_strictly_and_fetches_nothing(tmp_path: Path) -> None:
    pytest.importorskip("material")
    unreachable = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    environment = {**os.environ, **unreachable, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    start = (tmp_path / "site" / "start.html").read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|href)="(?:https?:)?//(?!squidfunk)[^"]+\.(?:js|css|woff2?)"', start)


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lstrip("# ").lower()).strip().replace(" ", "-")
