import numpy as np
import pytest

from nas.errors import InputError
from nas.space import Choice, SearchSpace, Stage


@pytest.fixture
def space() -> SearchSpace:
    return SearchSpace("demo", (Stage("mid", (Choice("teacher"), Choice("narrow"))), Stage("up", (Choice("teacher"), Choice("flat"), Choice("id")))))


def test_parse_leaves_unnamed_stages_to_the_teacher(space: SearchSpace) -> None:
    assert space.parse("up=id") == (0, 2)
    assert space.parse("teacher") == space.teacher


@pytest.mark.parametrize("text", ["", "  ", ","])
def test_an_empty_candidate_is_refused(space: SearchSpace, text: str) -> None:
    with pytest.raises(InputError, match="names no stage; give 'stage=choice,stage=choice', or 'teacher'"):
        space.parse(text)


def test_names_with_commas_and_equals_signs_are_read_back_as_they_are_printed() -> None:
    odd = ("teacher", "token=32,channel=64", "token=32", "a, b", "up,id")
    space = SearchSpace("odd", tuple(Stage(name, tuple(map(Choice, odd))) for name in ("layer0", "layer0.up", "up")))
    for candidate in map(tuple, space.enumerate().tolist()):
        named = space.decode(candidate).items()
        assert space.parse(",".join(f"{stage}={choice}" for stage, choice in named)) == candidate
        assert space.parse(", ".join(f"{stage}={choice}" for stage, choice in named if choice != "teacher") or "teacher") == candidate
    with pytest.raises(InputError, match="stage 'up' has no choice 'token=32,chanel=64'; did you mean"):
        SearchSpace("odd", (Stage("up", tuple(map(Choice, odd[:2]))),)).parse("up=token=32,chanel=64")
    assert space.parse("up=token=32,") == (0, 0, 2)


def test_decode_is_the_inverse_of_encode(space: SearchSpace) -> None:
    for candidate in map(tuple, space.enumerate().tolist()):
        assert space.encode(space.decode(candidate)) == candidate


def test_enumerate_lists_every_candidate_once_with_the_last_stage_fastest(space: SearchSpace) -> None:
    rows = space.enumerate()
    assert rows.shape == (6, 2)
    assert np.unique(rows, axis=0).shape == (6, 2)
    assert rows[1].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("upp=id", "no stage 'upp'; did you mean 'up'"),
        ("up=idd", "no choice 'idd'; did you mean 'id'"),
        ("up", "expected 'stage=choice'"),
        ("up=id,up=flat", "names stage 'up' twice"),
        ("mid=narrow,upp=id", "no stage 'upp'; did you mean 'up'"),
        ("mid=narrow,up", "expected 'stage=choice', got 'up'"),
        ("mid=narow,up=id", "no choice 'narow'; did you mean 'narrow'"),
    ],
)
def test_a_wrong_candidate_text_says_what_is_wrong(space: SearchSpace, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        space.parse(text)


def test_a_candidate_out_of_range_names_the_stage(space: SearchSpace) -> None:
    with pytest.raises(InputError, match=r"stage 'mid' has choices 0\.\.1, got 9"):
        space.check((9, 0))
    with pytest.raises(InputError, match="has 2 stages, got 1"):
        space.check((0,))


def test_malformed_stages_are_refused() -> None:
    with pytest.raises(InputError, match="must have 'teacher' as choice 0"):
        Stage("mid", (Choice("narrow"),))
    with pytest.raises(InputError, match="two choices named 'a'"):
        Stage("mid", (Choice("teacher"), Choice("a"), Choice("a")))
    with pytest.raises(InputError, match="two stages named 'mid'"):
        SearchSpace("demo", (Stage("mid", (Choice("teacher"),)), Stage("mid", (Choice("teacher"),))))
    with pytest.raises(InputError, match="at least 1 choice"):
        SearchSpace.of_sizes("demo", [2, 0])
