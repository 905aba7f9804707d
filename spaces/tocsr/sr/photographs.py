"""Photographs that super-resolution is trained and judged on: read when asked for, since a folder of them need not fit into memory."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import final

import numpy as np
from numpy.typing import NDArray

from nas.arguments import whole
from nas.errors import InputError, did_you_mean
from nas.progress import Progress
from nas.spaces.tocsr.data import eight_bits, picture_files
from nas.spaces.tocsr.sr.images import MOST_LARGE_PIXELS, read_picture

Picture = NDArray[np.uint8]
"""`(H, W, 3)`."""

KEPT = 1 << 30
"""Bytes of photographs that stay in memory, the latest read."""


@final
class PhotographFolder(Mapping[str, Picture]):
    """Name -> photograph, read from its file and halved until no side exceeds `longest` (which takes most cameras' softness out).

    Args:
        files: the photographs; of several of one name the last counts.
        longest: pixels of a side at most.
        keep: bytes of photographs that stay in memory for the next time they are asked for.

    Raises:
        InputError: `longest` is below 1.
    """

    def __init__(self, files: Sequence[Path], longest: int, keep: int = KEPT) -> None:
        self._files = {path.name: path for path in files}
        self._longest = whole("longest", longest, 1)
        self._keep = keep
        self._latest: OrderedDict[str, Picture] = OrderedDict()

    def __getitem__(self, name: str) -> Picture:
        """The photograph.

        Raises:
            InputError: its file is no picture that can be read.
        """
        picture = self._latest.pop(name, None)
        self._latest[name] = self._read(self._files[name]) if picture is None else picture
        while len(self._latest) > 1 and sum(kept.nbytes for kept in self._latest.values()) > self._keep:
            self._latest.popitem(last=False)
        return self._latest[name]

    def __contains__(self, name: object) -> bool:
        """Whether there is a file of that name; it is not read."""
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def _read(self, file: Path) -> Picture:
        picture = eight_bits(read_picture(file, MOST_LARGE_PIXELS))
        factor = 1
        while max(picture.size) > self._longest * factor:
            factor *= 2
        return np.asarray(picture.reduce(factor))


@final
class _Part(Mapping[str, Picture]):
    """Some of the photographs."""

    def __init__(self, whole: Mapping[str, Picture], names: Sequence[str]) -> None:
        self._whole = whole
        self._names = dict.fromkeys(names)

    def __getitem__(self, name: str) -> Picture:
        if name not in self._names:
            raise KeyError(name)
        return self._whole[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def photographs_in(folder: Path, longest: int, progress: Progress) -> PhotographFolder:
    """Every picture in a folder."""
    return PhotographFolder(picture_files(folder, progress), longest)


def hold_out(photographs: Mapping[str, Picture], names: Sequence[str]) -> tuple[Mapping[str, Picture], Mapping[str, Picture]]:
    """The photographs to train on and those held out by name; none is read for it.

    Raises:
        InputError: a name is not among them, or none is left.
    """
    for name in names:
        if name not in photographs:
            raise InputError(f"no photograph '{name}' to hold out{did_you_mean(name, photographs)}")
    rest = [name for name in photographs if name not in names]
    if not rest:
        raise InputError(f"all {len(photographs)} photographs are held out; leave some to train on")
    return _Part(photographs, rest), _Part(photographs, names)
