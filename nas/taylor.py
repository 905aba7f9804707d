"""What is expected of the divergence before anything is measured: its Taylor expansion at the teacher.

Replacing the block of stage `s` by choice `k` changes what the stage writes by `delta_sk`, and the network's output by `J_s delta_sk` to first order. A
divergence is least at the teacher, so to second order it is a quadratic form of the output's change (Gauss-Newton; `H` its Hessian by the output):

    L(a) ~ sum_s sum_t gram[s, a_s, t, a_t],     gram[s, k, t, m] = mean over samples of (J_s delta_sk)' H (J_t delta_tm) / 2

The diagonal is what each block is expected to cost alone, the rest how the losses of two add up or cancel. `nas.evaluators.gauss_newton` computes it.

Symbols: `S` stages, `K` choices, `n` candidates.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nas.errors import InputError

Floats = NDArray[np.float64]

LEAST = 1e-3
"""Single losses are taken as at least this share of the least positive one; so are those that sampling made negative."""


@dataclass(frozen=True)
class Taylor:
    """The quadratic form `gram` `(S, K, S, K)`, symmetric, 0 for the teacher's blocks and padding.

    Raises:
        InputError: another shape, a value that is not finite, or no block that is expected to cost anything.
    """

    gram: Floats

    def __post_init__(self) -> None:
        shape = np.shape(self.gram)
        if len(shape) != 4 or shape[:2] != shape[2:]:
            raise InputError(f"a Taylor expansion must have the shape (stages, choices, stages, choices), got {shape}")
        if not np.isfinite(self.gram).all() or not np.allclose(self.gram, self.gram.transpose(2, 3, 0, 1)):
            raise InputError("a Taylor expansion must be finite and symmetric")
        if not (self._alone > 0).any():
            raise InputError("a Taylor expansion must give some block a positive loss")

    @property
    def _alone(self) -> Floats:
        alone: Floats = np.einsum("sksk->sk", self.gram)
        return alone

    @cached_property
    def losses(self) -> Floats:
        """The divergence expected of each block alone, `(S, K)`: positive, also where there is no surrogate block."""
        alone = self._alone
        losses: Floats = np.maximum(alone, LEAST * alone[alone > 0].min())
        return losses

    @cached_property
    def pairs(self) -> Floats:
        """Pair coefficients `(S, S, K, K)`: what two losses l, m gain together, over sqrt(l m); between -2 and 2."""
        root = np.sqrt(self.losses)
        between = (2 * self.gram / (root[:, :, None, None] * root)).transpose(0, 2, 1, 3)
        between[np.arange(len(root)), np.arange(len(root))] = 0.0
        pairs: Floats = np.clip(between, -2.0, 2.0)
        return pairs

    @property
    def rows(self) -> list[list[float]]:
        """The form as one matrix `(S K, S K)` of JSON values, which `of_rows` reads back."""
        size = self.gram.shape[0] * self.gram.shape[1]
        rows: list[list[float]] = self.gram.reshape(size, size).tolist()
        return rows

    @classmethod
    def of_rows(cls, rows: ArrayLike, n_stages: int) -> "Taylor":
        """The form that gave these rows.

        Raises:
            InputError: they are no such form.
        """
        matrix = np.array(rows, dtype=np.float64)
        k = len(matrix) // n_stages
        if matrix.shape != (n_stages * k, n_stages * k):
            raise InputError(f"a Taylor expansion of {n_stages} stages must be a square matrix of as many blocks, got shape {matrix.shape}")
        return cls(matrix.reshape(n_stages, k, n_stages, k))

    def __call__(self, candidates: ArrayLike) -> Floats:
        """The divergence expected of each candidate, `(n, S) -> (n,)`; never negative."""
        x = np.asarray(candidates, dtype=np.int64)
        stages = np.arange(x.shape[1])
        total: Floats = self.gram[stages[:, None], x[:, :, None], stages[None, :], x[:, None, :]].sum(axis=(1, 2))
        return np.maximum(total, 0.0)
