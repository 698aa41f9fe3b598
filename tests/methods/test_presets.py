import pytest

from prunus.base.errors import InputError, UnknownNameError
from prunus.compare.grid import Grid
from prunus.methods.presets import PRESETS, options
from prunus.recipe import Recipe


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("pattern", [None, "row", "2:4", "8:16", "1:4,2:4,3:4"])
def test_every_preset_builds_for_every_pattern(name, pattern):
    fields = {"pattern": pattern} if pattern else {"sparsity": 0.6}
    recipe = Recipe.of(preset=name, **fields)
    built = recipe.build()
    assert built.reads_text
    one = pattern in ("2:4", "8:16")
    assert recipe.method == (PRESETS[name].fixed if one else PRESETS[name].free)["method"]
    if pattern:
        assert recipe.pattern == pattern


def test_what_is_written_is_the_fields_and_no_preset(tmp_path):
    recipe = Recipe.of(preset="best", sparsity=0.5)
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml("some/model"))
    assert "preset" not in (tmp_path / "recipe.yaml").read_text()
    assert Recipe.read(tmp_path / "recipe.yaml") == recipe
    assert recipe == Recipe.of(sparsity=0.5, **PRESETS["best"].free)


def test_options_beside_it_replace_its_parts():
    recipe = Recipe.of(preset="best", method="wanda", settings={"score.power": 1.0})
    assert recipe.method == "wanda"
    assert recipe.settings == {"reconstruct.norms": True, "score.power": 1.0}
    assert Recipe.of(preset="best", pattern="2:4", permutation="none").permutation == "none"


@pytest.mark.parametrize(
    ("beside", "gone"),
    [
        ({"method": "wanda"}, {"allocation.granularity"}),
        ({"method": "mrp-sm"}, {"allocation.granularity", "update"}),
        ({"allocation": "slope"}, {"allocation.granularity"}),
        ({"reconstruct": "none"}, {"reconstruct.norms"}),
    ],
)
def test_what_an_option_beside_it_leaves_without_a_meaning_goes(beside, gone):
    best = Recipe.of(preset="best", sparsity=0.5)
    assert best.replaced(**beside) == Recipe.of(preset="best", sparsity=0.5, **beside)
    whole = best.replaced(update="least-squares")
    recipe = whole.replaced(**beside)
    recipe.build()
    assert set(whole.settings) - set(recipe.settings) == gone - {"update"}
    assert (recipe.update is None) == ("update" in gone)


def test_over_a_recipe_it_fits_the_pattern_of_that_recipe():
    old = Recipe.of(method="wanda", pattern="2:4", samples=16)
    new = old.replaced(preset="best")
    assert (new.samples, new.pattern) == (16, "2:4")
    assert new.permutation == PRESETS["best"].fixed["permutation"]


def test_a_grid_takes_presets_as_rows():
    cells, _ = Grid.of(rows=["wanda", "best"], columns=[0.5, "2:4"]).cells()
    found = {(cell.row, cell.column): cell.recipe.method for cell in cells}
    assert found["best", "50 %"] == PRESETS["best"].free["method"]
    assert found["best", "2:4"] == PRESETS["best"].fixed["method"]


def test_options_of_the_command_line():
    given = {"method": "ria", "true_sequential": True, "settings": {"damp": 0.1}}
    assert options(given) == "--method ria --true-sequential True --set damp=0.1"


def test_no_method_beside_it_is_no_method():
    with pytest.raises(InputError, match="method"):
        Recipe.of(preset="best", method=None)


def test_an_unknown_one_is_named():
    with pytest.raises(UnknownNameError, match="quick"):
        Recipe.of(preset="quick")
