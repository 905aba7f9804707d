"""The page on reliability: every fault has a row, a test that injects it, and that test is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
FAULTS = 30


def rows(text: str) -> dict[int, str]:
    """Number of a fault -> the rest of its row."""
    found = {}
    for numbers, rest in re.findall(r"^\| ([\d, ]+) \|(.*)$", text, flags=re.MULTILINE):
        found |= dict.fromkeys(map(int, numbers.split(",")), rest)
    return found


def test_every_fault_is_told_and_names_tests_that_are_there() -> None:
    told, _, tested = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8").partition("### Which test injects what")
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
    assert set(rows(told)) == set(rows(tested)) == set(range(1, FAULTS + 1))
    for number, row in rows(tested).items():
        names = re.findall(r"`([^`]+)`", row)
        assert names, number
        for name in names:
            assert (ROOT / name).exists() if "/" in name else f"def {name}(" in sources, name
