import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.errors import DamagedFile, InputError, NasError
from nas.files import check_form, copy_whole, damage, inside, parse_json, read_bytes, read_json, read_toml, write_manifest, write_whole


@pytest.mark.parametrize(
    ("value", "form"),
    [
        ({"a": 1}, {"a": str}),
        ({}, {"a": str}),
        ([1, "x"], [int]),
        ({"a": {"b": None}}, {"a": {str: int}}),
        (True, int),
        (True, int | float),
        ("x", int | None),
        ([], dict),
        (10**400, int | float),
    ],
)
def test_a_value_of_another_form_is_refused_with_its_place(value: object, form: object) -> None:
    with pytest.raises(DamagedFile, match=r"^demo"):
        check_form(value, form, "demo")


def test_optional_keys_may_be_missing_and_unknown_ones_are_let_pass() -> None:
    assert check_form({"a": 1, "z": 2}, {"a": int, "b?": str}, "demo") == {"a": 1, "z": 2}
    assert check_form(None, object, "demo") is None
    assert check_form(True, object, "demo") is True


@pytest.mark.parametrize("content", ["", "{", "[" * 100_000, "nul", "1" * 5000], ids=["empty", "torn", "deep", "word", "long number"])
def test_what_is_no_json_is_a_damaged_file(content: str) -> None:
    with pytest.raises(DamagedFile, match="demo is not JSON"):
        parse_json(content, "demo")


def test_a_file_larger_than_its_limit_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b" " * 101)
    with pytest.raises(DamagedFile, match="101 bytes, more than the 100"):
        read_bytes(tmp_path / "big", 100)


def test_a_folder_a_missing_file_and_bad_toml_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(b"\xff = 1")
    for path in (tmp_path, tmp_path / "none", tmp_path / "a.toml"):
        with pytest.raises(DamagedFile, match=str(path)):
            read_toml(path)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "", "a\\..\\x", "link/x", "a\0b", "x" * 100_000])
def test_a_name_that_leads_out_of_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "link").symlink_to("/etc")
    with pytest.raises(InputError, match="must name a file inside"):
        inside(tmp_path, name)


@given(st.text(max_size=40))
@settings(max_examples=100, deadline=None)
def test_a_name_either_stays_inside_or_is_refused(name: str) -> None:
    folder = Path("/tmp/some/folder")
    try:
        found = inside(folder, name)
    except NasError:
        return
    assert found.resolve().is_relative_to(folder.resolve())


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    write_whole(path, b"one")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, b"two")
    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]


def test_a_manifest_finds_what_was_changed_cut_or_removed(tmp_path: Path) -> None:
    for name in ("a.bin", "sub/b.bin", "c.bin"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"0123456789")
    write_manifest(tmp_path)
    assert damage(tmp_path) == []
    (tmp_path / "a.bin").write_bytes(b"0123456780")
    (tmp_path / "sub/b.bin").write_bytes(b"012345678")
    (tmp_path / "c.bin").unlink()
    found = damage(tmp_path)
    assert len(found) == 3
    assert "hash differs" in found[0]
    assert "missing" in found[1]
    assert "has 9 bytes, its manifest says 10" in found[2]


def test_a_manifest_cannot_point_outside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"version": 1, "files": {"../../etc/passwd": {"bytes": 1, "sha256": ""}}}))
    with pytest.raises(InputError, match="must name a file inside"):
        damage(tmp_path)


def test_a_json_file_of_another_form_is_named_with_the_place(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": [1, {"b": "x"}]}')
    with pytest.raises(DamagedFile, match=r"a\.json\.a\[1\] must be int"):
        read_json(tmp_path / "a.json", {"a": [int]})


def test_what_a_killed_process_of_the_same_id_left_is_not_copied(tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "weights").write_text("new")
    left = tmp_path / f".to.{os.getpid()}"
    left.mkdir()
    (left / "half").write_text("old")
    copy_whole(tmp_path / "from", tmp_path / "to")
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == ["manifest.json", "weights"]
    assert not left.exists()
