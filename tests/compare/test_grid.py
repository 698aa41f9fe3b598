import pytest

from prunus.base.errors import InputError
from prunus.compare.grid import Grid


def names(grid):
    return [str(cell) for cell in grid.cells()[0]]


def test_methods_times_patterns_times_seeds():
    grid = Grid.of(rows=["magnitude", "wanda"], columns=[0.5, "2:4"], seeds=[0, 7])
    assert names(grid) == [
        "magnitude, 50 %, seed 0",
        "magnitude, 2:4, seed 0",
        "wanda, 50 %, seed 0",
        "wanda, 50 %, seed 7",
        "wanda, 2:4, seed 0",
        "wanda, 2:4, seed 7",
    ]
    last = grid.cells()[0][-1].recipe
    assert (last.method, last.pattern, last.seed) == ("wanda", "2:4", 7)


def test_a_row_stands_over_its_column_and_over_what_all_share():
    grid = Grid.of(
        recipe={"samples": 4, "settings": {"score.power": 0.25}, "calibration": "c4"},
        rows={"own": {"method": "ria", "samples": 8, "settings": {"score.terms": "in"}}},
        columns={"60 %": {"sparsity": 0.6, "samples": 5}},
    )
    [cell] = grid.cells()[0]
    recipe = cell.recipe
    assert (recipe.samples, recipe.sparsity, recipe.calibration) == (8, 0.6, "c4")
    assert recipe.settings == {"score.power": 0.25, "score.terms": "in"}


def test_a_row_with_a_seed_has_that_one_alone_and_random_has_all():
    grid = Grid.of(
        rows={"a": {"method": "wanda", "seed": 5}, "b": {"method": "random"}}, seeds=[1, 2]
    )
    assert names(grid) == ["a, 50 %, seed 5", "b, 50 %, seed 1", "b, 50 %, seed 2"]


def test_methods_without_data_read_no_text():
    grid = Grid.of(rows=["magnitude", "wanda"], recipe={"calibration": "c4"})
    assert [cell.recipe.calibration for cell in grid.cells()[0]] == ["none", "c4"]


def test_a_cell_that_cannot_be_has_its_reason():
    grid = Grid.of(rows=["wanda", "goa"], columns=[0.3, "2:4"])
    cells, impossible = grid.cells()
    assert {(c.row, c.column) for c in cells} == {
        ("wanda", "30 %"),
        ("wanda", "2:4"),
        ("goa", "30 %"),
    }
    assert list(impossible) == [("goa", "2:4")]
    assert "--pattern does not apply" in impossible["goa", "2:4"]


def test_only():
    grid = Grid.of(rows=["wanda", "ria"], columns=[0.5, "2:4"], only={"ria": ["2:4"]})
    assert names(grid)[-1] == "ria, 2:4, seed 0"
    assert len(names(grid)) == 3


def test_a_file(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text("rows: [wanda]\ncolumns: [0.6, 2:4]\nseeds: [3]\njudge: {text: own.txt}\n")
    grid = Grid.read(path, rows=["ria"])
    assert grid.columns == {"60 %": {"sparsity": 0.6}, "2:4": {"pattern": "2:4"}}
    assert (grid.seeds, grid.judge.text, list(grid.rows)) == ([3], ["own.txt"], ["ria"])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"rows": []}, "rows"),
        ({"rows": ["wanda"], "seeds": []}, "seeds"),
        ({"rows": ["wanda"], "columns": []}, "columns"),
        ({"rows": ["wanda"], "colums": [0.5]}, "colums"),
        ({"rows": ["wanda"], "judge": {"text": []}}, "text"),
        ({"rows": ["wanda"], "only": {"ria": ["50 %"]}}, "'ria', which is none of wanda"),
        ({"rows": ["wanda"], "only": {"wanda": ["9 %"]}}, "'9 %', which is none of 50 %"),
    ],
)
def test_a_grid_that_is_none(fields, said):
    with pytest.raises(InputError, match=said):
        Grid.of(**fields)


def test_a_grid_without_a_cell_that_can_be():
    with pytest.raises(InputError, match=r"No cell of this grid.*wandaa.*wanda"):
        Grid.of(rows=["wandaa"]).cells()


def test_texts_have_short_names_where_these_are_clear():
    grid = Grid.of(rows=["ri"], judge={"text": ["a/x.txt", "b/y.txt", "c/y.txt"]})
    assert list(grid.judge.texts) == ["x.txt", "b/y.txt", "c/y.txt"]
    assert grid.judge.first == "perplexity x.txt"
