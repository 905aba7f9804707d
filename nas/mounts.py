"""Whether a folder lies on a network file system, whose locks and caches are not to be relied on between machines."""

import os
from pathlib import Path

_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "afs", "fuse.sshfs", "fuse.glusterfs", "9p"}


def network_filesystem(path: Path, mounts: Path = Path("/proc/mounts")) -> str | None:
    """The kind of network file system that holds the path; None for a local one, and where the system does not tell."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    place = os.path.realpath(path)
    best, kind = "", ""
    for line in lines:
        _, point, found, *_ = line.split(" ", 3)
        point = point.replace("\\040", " ")
        if (place == point or place.startswith(point.rstrip("/") + "/")) and len(point) >= len(best):
            best, kind = point, found
    return kind if kind in _NETWORK else None
