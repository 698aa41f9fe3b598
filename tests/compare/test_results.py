"""The grids whose results are in the repository."""

from pathlib import Path

import pytest

from prunus.compare.grid import Grid

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


@pytest.mark.parametrize(
    "path", sorted(RESULTS.glob("*/*.yaml")), ids=lambda p: f"{p.parent.name}/{p.stem}"
)
def test_every_cell_of_a_grid_can_be_run(path):
    grid = Grid.read(path)
    cells, impossible = grid.cells()
    assert not impossible
    assert {cell.row for cell in cells} == set(grid.rows)
