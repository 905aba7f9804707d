from pathlib import Path

import pytest

from nas.mounts import network_filesystem

MOUNTS = """\
/dev/sda1 / ext4 rw 0 0
tmpfs /tmp tmpfs rw 0 0
server:/home /home/user\\040name nfs4 rw 0 0
//server/x /home/user\\040name/share cifs rw 0 0
/dev/sdb /home/user\\040name/local ext4 rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/home/user name/runs/a", "nfs4"), ("/home/user name/share", "cifs"), ("/home/user name/local/runs", None), ("/home/user nam", None), ("/tmp/x", None)],
)
def test_a_network_file_system_is_told_by_the_mount_that_holds_the_path(tmp_path: Path, path: str, kind: str | None) -> None:
    (tmp_path / "mounts").write_text(MOUNTS)
    assert network_filesystem(Path(path), tmp_path / "mounts") == kind


def test_where_the_system_does_not_tell_nothing_is_said(tmp_path: Path) -> None:
    assert network_filesystem(tmp_path, tmp_path / "none") is None
