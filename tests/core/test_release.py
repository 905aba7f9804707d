"""What a release holds: one version everywhere, a wheel with its data, an sdist that builds the same."""

import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

import nas

ROOT = Path(__file__).parents[2]
DATA = ["nas/py.typed", "nas/report/report.html", "nas/report/report.css", "nas/report/report.js"]


def test_one_version_stands_everywhere() -> None:
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert nas.__version__ == stated == version("stage-nas")
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == stated


def test_workflow_and_templates_are_yaml_and_run_make_test() -> None:
    files = sorted((ROOT / ".github").rglob("*.yml"))
    assert len(files) == 3
    assert all(yaml.safe_load(file.read_text()) for file in files)
    assert "make test" in (ROOT / ".github" / "workflows" / "test.yml").read_text()


def test_every_package_with_modules_is_listed_for_the_wheel() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {"nas": ROOT / "nas", **{f"nas.{name}": ROOT / name for name in ("blocks", "evaluators", "optimizers", "spaces")}}
    found = {
        ".".join([package, *path.parent.relative_to(folder).parts])
        for package, folder in folders.items()
        for path in folder.rglob("__init__.py")
        if package != "nas" or not path.parent.relative_to(folder).parts[:1] or not (folder / path.parent.relative_to(folder).parts[0]).is_symlink()
    }
    assert found <= listed


@pytest.mark.slow
def test_wheel_and_sdist_hold_the_data_and_stay_small(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    for name in files:
        source, target = ROOT / name, tree / name
        if source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)
    build = "from setuptools.build_meta import build_sdist, build_wheel; import sys; to = sys.argv[1]; build_sdist(to); build_wheel(to)"
    done = subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=tree, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    (sdist,) = tmp_path.glob("*.tar.gz")
    assert wheel.stat().st_size < 40e6
    assert sdist.stat().st_size < 40e6
    names = set(zipfile.ZipFile(wheel).namelist())
    assert names.issuperset(DATA)
    assert any(name.startswith("nas/spaces/tocsr/assets/") for name in names)
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "NOTICE", "nas/report/report.html", "blocks/store.py"} <= inside
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = "import nas, nas.cli.app, nas.report.page; print(nas.__file__)"
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert str(tmp_path / "site") in run.stdout, run.stderr
