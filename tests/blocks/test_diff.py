"""What a model has in place of its teacher's stages, as text."""

from rich.cells import cell_len

from nas.blocks.diff import Row, diff_text


def test_columns_stay_in_line_where_a_stage_has_a_name_of_wide_characters() -> None:
    rows = [Row("入口", "層", "half", 10, 5), Row("mid", "RA", "=", 10, 10)]
    head, *lines = diff_text(rows, 30, 25).splitlines()
    assert {cell_len(line) for line in lines} == {cell_len(head)}
    for line, here in zip(lines, ("half", "=", "="), strict=False):
        assert cell_len(line[: line.index(here)]) == head.index("here")
