"""Rows of a value on disk: safetensors files in half precision, read through memory maps, for features that do not fit in memory."""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nas.errors import DamagedFile, InputError

SHARD_MB = 256
"""Size of a file at most, single rows apart."""

ROUNDING = 1e-6
"""Standard deviation of a constant in single precision, as a share of it, at most."""


class Shards:
    """`n` rows of one value, appended in order, then read by index like a tensor's.

    Floating-point numbers are kept in fp16, or in bf16 in a file where fp16 would overflow, and handed out in the type they came in.

    Args:
        folder: where the files go.
        name: how they are named.
    """

    def __init__(self, folder: Path, name: str, shard_mb: int = SHARD_MB) -> None:
        self._folder, self._name, self._limit = folder, name, shard_mb << 20
        self._pending: list[Tensor] = []
        self._rows_each = 0
        self._dtype = torch.float32
        self._files: list[Path] = []
        self._maps: dict[int, Tensor] = {}

    device = torch.device("cpu")

    @classmethod
    def reopen(cls, folder: Path, name: str, dtype: torch.dtype) -> "Shards":
        """Rows that another process wrote, handed out as `dtype`.

        Raises:
            DamagedFile: there are none, or they cannot be read.
        """
        found = cls(folder, name)
        found._files, found._dtype = sorted(folder.glob(f"{name}-?????.safetensors")), dtype
        if not found._files:
            raise DamagedFile(f"'{folder}' holds no features '{name}'; start the calibration again")
        found._rows_each = len(found._map(0))
        return found

    def append(self, values: Tensor) -> None:
        """Adds rows `(m, ...)`; files are written as they fill up.

        Raises:
            InputError: the disk is full or cannot be written.
        """
        if not self._rows_each:
            self._rows_each, self._dtype = max(1, self._limit // half_bytes(values[:1])), values.dtype
        self._pending.append(values.detach().cpu())
        while sum(map(len, self._pending)) >= self._rows_each:
            rows = torch.cat(self._pending)
            self._write(rows[: self._rows_each])
            self._pending = [rows[self._rows_each :]]

    def close(self) -> "Shards":
        """Writes what is pending; call it after the last row."""
        if sum(map(len, self._pending)):
            self._write(torch.cat(self._pending))
        self._pending = []
        return self

    def __getitem__(self, rows: Tensor) -> Tensor:
        """The given rows, `(m, ...)`."""
        return torch.stack([self._map(row // self._rows_each)[row % self._rows_each] for row in rows.tolist()]).to(self._dtype)

    def parts(self) -> Iterator[Tensor]:
        """All rows in order, a file at a time, as they are kept."""
        for number in range(len(self._files)):
            yield self._map(number)

    def _write(self, rows: Tensor) -> None:
        path = self._folder / f"{self._name}-{len(self._files):05}.safetensors"
        try:
            save_file({"rows": _halved(rows).contiguous()}, path)
        except (OSError, SafetensorError) as error:
            raise InputError(f"cannot write features to {path}: {error}; free some disk, or allow less with --max-disk") from error
        self._files.append(path)

    def _map(self, number: int) -> Tensor:
        if number not in self._maps:
            try:
                self._maps[number] = load_file(self._files[number])["rows"]  # memory-mapped: pages are read when touched
            except (OSError, SafetensorError, KeyError) as error:
                raise DamagedFile(f"features {self._files[number]} cannot be read: {error}; start the calibration again") from error
        return self._maps[number]


def half_bytes(value: Tensor) -> int:
    """Bytes that a value takes on disk."""
    return value.numel() * (2 if value.is_floating_point() else value.element_size())


def variance(value: Tensor | Shards) -> float:
    """Variance over all rows and elements; 0 of a constant."""
    if isinstance(value, Tensor):
        return without_rounding(float(value.float().var()), float(value.float().mean()))
    count, mean, squares = 0, 0.0, 0.0  # merged by file, after Chan, Golub and LeVeque
    for part in value.parts():
        n, centre = part.numel(), float(part.float().mean())
        squares += float((part.float() - centre).square().sum(dtype=torch.float64)) + (centre - mean) ** 2 * count * n / (count + n)
        mean += (centre - mean) * n / (count + n)
        count += n
    return without_rounding(squares / max(count - 1, 1), mean)


def without_rounding(found: float, mean: float) -> float:
    """The variance found, 0 where it is but what rounding leaves of a constant: errors in such a unit would be beyond all measure."""
    return 0.0 if found <= (ROUNDING * mean) ** 2 else found


def _halved(rows: Tensor) -> Tensor:
    if not rows.is_floating_point() or rows.element_size() == 2:
        return rows
    half = rows.to(torch.float16)
    return rows.to(torch.bfloat16) if bool(half.isinf().any()) else half
