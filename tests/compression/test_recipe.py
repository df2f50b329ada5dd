"""Recipes: presets, files, digests and refusals."""

from pathlib import Path

import pytest

from compression.errors import RecipeError
from compression.presets import PRESETS, load_recipe, parse_recipe
from compression.schemes import Int4, Int8


def test_presets_are_what_their_names_say() -> None:
    """int8 is per row everywhere; int4 is asymmetric g32 with a searched clip and int8 tables."""
    assert PRESETS["int8"].weights == Int8(method="auto")
    assert PRESETS["int8-fast"].weights == Int8()
    assert PRESETS["int4"].weights == Int4(group_size=32, symmetric=False, method="imatrix")
    assert PRESETS["int4-fast"].weights == Int4(group_size=32, symmetric=False, method="mse")
    assert not any(PRESETS[name].needs_calibration for name in ("int4-fast", "int8-fast"))
    assert PRESETS["int4"].embeddings == Int8()


def test_unknown_preset_lists_the_known_ones() -> None:
    """A typo gets the names that exist."""
    with pytest.raises(RecipeError, match=r"'int6'.*int8, .*int4, .*full"):
        load_recipe("int6")


def test_digest_depends_on_content_not_on_the_name() -> None:
    """Two names for one treatment share a digest; another group size does not."""
    fields = {"weights": {"scheme": "int4"}, "embeddings": {"scheme": "int8"}}
    renamed = parse_recipe(fields, where="test", default_name="mine")
    coarser = parse_recipe(
        {**fields, "weights": {"scheme": "int4", "group_size": 64}}, where="test", default_name="b"
    )
    assert renamed.digest == PRESETS["int4-fast"].digest
    assert coarser.digest != PRESETS["int4"].digest


def test_yaml_file_is_a_recipe(tmp_path: Path) -> None:
    """A file without a name takes its stem."""
    path = tmp_path / "W4-Coarse.yaml"
    path.write_text("weights: {scheme: int4, group_size: 128, method: rtn}\n")
    recipe = load_recipe(str(path))
    assert recipe.name == "w4-coarse"
    assert recipe.weights == Int4(group_size=128, method="rtn")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("weights: {scheme: int4}\nkv: 8\n", r"unknown key 'kv'"),
        ("weights: {scheme: int4, group: 32}\n", r"unknown key 'weights.int4.group'"),
        ("weights: {scheme: int4, group_size: 48}\n", r"'weights.int4.group_size' is 48"),
        ("weights: {scheme: int3}\n", r"'weights' is .*int3"),
        ("embeddings: {scheme: int8}\n", r"missing key 'weights'"),
        ("- int4\n", r"must be a mapping"),
        ("weights: int3\n", r"'weights' is .*int3"),
        ("weights: {scheme: int8}\nweights: {scheme: int4}\n", r"'weights' is given twice"),
        ("weights: int8\nbudget: {kld: 0.1, kld: 1}\n", r"'kld' is given twice"),
        ("weights: int8\nbudget: {kld: .inf}\n", r"'budget.kld' is inf"),
        ("weights: int8\nbudget: {top1: .nan}\n", r"'budget.top1' is nan"),
        ("weights: [", r"cannot be read as YAML"),
        ("[" * 2000, r"cannot be read as YAML"),
        ("weights: 2024-99-99\n", r"cannot be read as YAML"),
        ("name: 8bit!\nweights: {scheme: int8}\n", r"the name '8bit!' .*set the key 'name'"),
    ],
)
def test_bad_file_names_the_key(tmp_path: Path, text: str, expected: str) -> None:
    """Each mistake gets one line with the key, the value or the remedy."""
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=expected) as caught:
        load_recipe(str(path))
    assert "\n" not in str(caught.value)


def test_names_of_schemes_stand_for_schemes(tmp_path: Path) -> None:
    """What says nothing but a name can be written as that name."""
    path = tmp_path / "short.yaml"
    path.write_text(
        "weights: int4\nembeddings: int8\nkv_cache: int8\nkeep: re:.*down_proj\n"
        "rules: [{targets: Linear, weights: int8}]\n"
    )
    spelled = {
        "weights": {"scheme": "int4"},
        "embeddings": {"scheme": "int8"},
        "kv_cache": {"key": {"scheme": "int8"}, "value": {"scheme": "int8"}},
        "keep": ["re:.*down_proj"],
        "rules": [{"targets": ["Linear"], "weights": {"scheme": "int8"}}],
    }
    assert load_recipe(str(path)) == parse_recipe(spelled, where="test", default_name="short")


def test_digest_leaves_out_what_changes_nothing() -> None:
    """A budget only refuses, and a calibration counts where something calibrates."""

    def digest(method: str, **fields: object) -> str:
        weights = {"scheme": "int4", "method": method}
        return parse_recipe({"weights": weights, **fields}, where="", default_name="a").digest

    assert digest("rtn", budget={"kld": 1}) == digest("rtn", calibration={"seed": 1})
    assert digest("gptq", calibration={"seed": 1}) != digest("gptq")


@pytest.mark.parametrize("stem", ["My Recipe", "_int4", "größe", "x" * 64])
def test_stem_that_is_no_name(tmp_path: Path, stem: str) -> None:
    """A file name that cannot name a recipe is told so, with the way out; the way out works."""
    path = tmp_path / f"{stem}.yaml"
    path.write_text("weights: {scheme: int8}\n")
    with pytest.raises(RecipeError, match=f"the name '{stem.lower()}' .*: set the key 'name'$"):
        load_recipe(str(path))
    path.write_text("name: mine\nweights: {scheme: int8}\n")
    assert load_recipe(str(path)).name == "mine"


@pytest.mark.parametrize(
    ("file", "given", "name"),
    [
        ("int4.yaml", "", "int4"),
        ("INT8.yml", "", "int8"),
        ("full.yaml", "", "full"),
        ("mine.yaml", "name: int4\n", "int4"),
        ("mine.yaml", "name: full\n", "full"),
    ],
)
def test_name_of_a_preset_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, given: str, name: str
) -> None:
    """Two treatments never share one variant name, whether it is given or the file's own."""
    monkeypatch.chdir(tmp_path)
    Path(file).write_text(f"{given}weights: {{scheme: int4, group_size: 64}}\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(f"./{file}")
    assert str(caught.value) == (
        f"recipe './{file}' is named '{name}', which is a preset: "
        "give it another name with the key 'name'"
    )


def test_preset_written_out_keeps_its_name(tmp_path: Path) -> None:
    """A file that says what the preset of its name says is that preset."""
    path = tmp_path / "int4-fast.yaml"
    path.write_text("weights: {scheme: int4, group_size: 32}\nembeddings: {scheme: int8}\n")
    assert load_recipe(str(path)) == PRESETS["int4-fast"]


def test_missing_file_is_refused(tmp_path: Path) -> None:
    """A path that leads nowhere is named."""
    with pytest.raises(RecipeError, match=r"none\.yaml.*No such file"):
        load_recipe(str(tmp_path / "none.yaml"))
