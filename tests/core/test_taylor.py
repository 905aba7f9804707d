"""The quadratic form of expected divergences."""

import numpy as np
import pytest

from nas.errors import InputError
from nas.taylor import LEAST, Taylor


def gram(seed: int = 0, rows: int = 30) -> np.ndarray:
    """Of random responses of 3 stages with 2 surrogates each."""
    response = np.random.default_rng(seed).normal(size=(rows, 3, 3))
    response[:, :, 0] = 0.0
    return np.einsum("nsk,ntm->sktm", response, response) / rows


def test_it_is_the_mean_square_of_summed_responses() -> None:
    response = np.random.default_rng(0).normal(size=(30, 3, 3))
    response[:, :, 0] = 0.0
    candidates = np.array([[0, 0, 0], [1, 0, 0], [1, 2, 0], [2, 2, 1]])
    expected = [np.square(response[:, 0, a] + response[:, 1, b] + response[:, 2, c]).mean() for a, b, c in candidates]
    assert np.allclose(Taylor(gram())(candidates), expected)


def test_losses_and_pair_coefficients_give_it_back() -> None:
    taylor = Taylor(gram())
    x = np.array([[1, 2, 1]])
    loss = taylor.losses[np.arange(3), x[0]]
    total = loss.sum()
    for s, t in ((0, 1), (0, 2), (1, 2)):
        total += taylor.pairs[s, t, x[0, s], x[0, t]] * np.sqrt(loss[s] * loss[t])
    assert total == pytest.approx(taylor(x)[0])
    assert np.array_equal(taylor.pairs, taylor.pairs.transpose(1, 0, 3, 2))


def test_losses_that_sampling_made_negative_count_as_little() -> None:
    form = gram()
    form[1, 2, 1, 2] = -0.4
    taylor = Taylor(form)
    assert taylor.losses[1, 2] == LEAST * min(form[s, k, s, k] for s in range(3) for k in (1, 2) if (s, k) != (1, 2))
    assert np.abs(taylor.pairs).max() <= 2
    assert (taylor([[0, 2, 0]]) >= 0).all()


def test_rows_are_read_back() -> None:
    taylor = Taylor(gram())
    assert np.array_equal(Taylor.of_rows(taylor.rows, 3).gram, taylor.gram)
    with pytest.raises(InputError, match="square matrix"):
        Taylor.of_rows(taylor.rows[:-1], 3)


@pytest.mark.parametrize(
    ("form", "says"),
    [
        (np.zeros((3, 3)), "shape"),
        (np.zeros((2, 3, 2, 3)), "positive loss"),
        (np.full((2, 2, 2, 2), np.nan), "finite"),
        (np.arange(16.0).reshape(2, 2, 2, 2), "symmetric"),
    ],
)
def test_what_is_no_such_form_is_refused(form: np.ndarray, says: str) -> None:
    with pytest.raises(InputError, match=says):
        Taylor(form)
