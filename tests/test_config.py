"""Configuration: precedence, mistakes named with their nearest match, counts and schedules."""

from __future__ import annotations

from pathlib import Path

import pytest

from clm.config import Config, fields, from_dict, parse_background, to_dict
from clm.errors import ClmError
from clm.plan.budget import AUTO, COLOUR_BUS_BYTES, MOMENT_BYTES, OFFLOADS
from clm.settings import load_config, presets
from clm.store.arrays import MOMENT_TYPES


def test_flags_win_over_file_and_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("iterations: 500\nbatch_size: 2\n")
    config = load_config({"batch_size": 8, "seed": None}, file=file)
    assert (config.iterations, config.batch_size, config.seed) == (500, 8, 0)


def test_an_unknown_key_is_an_error_with_the_nearest_match(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("iteration: 500\n")
    with pytest.raises(ClmError, match="Did you mean `iterations`"):
        load_config({}, file=file)


@pytest.mark.parametrize(
    "bad",
    [
        {"iterations": 0},
        {"sh_degree": 4},
        {"offload": "cloud"},
        {"moments": "f16"},
        {"colour_bus": "f16"},
        {"device": "tpu"},
        {"downscale": "3"},
        {"background": "pink"},
        {"max_gaussians": "many"},
    ],
)
def test_values_out_of_range_are_refused_by_name(bad: dict) -> None:
    with pytest.raises(ClmError, match=next(iter(bad)) if "many" not in bad.values() else "many"):
        load_config(bad)


@pytest.mark.parametrize("text", ["- 1", "a: b: c", "5"])
def test_a_file_that_is_no_configuration_is_one_sentence(tmp_path: Path, text: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(ClmError, match=r"bad\.yaml"):
        load_config({}, file=file)


def test_counts_are_read_with_suffixes() -> None:
    assert load_config({"max_gaussians": "1.5M"}).max_gaussians == 1_500_000
    assert load_config({"max_gaussians": "950k"}).max_gaussians == 950_000


def test_the_resolved_configuration_survives_a_round_trip() -> None:
    config = load_config({"iterations": 7000})
    assert from_dict(to_dict(config), "test") == config
    assert None not in (config.sh_interval, config.densify_from, config.densify_until, config.densify_every)


def test_a_full_length_run_has_the_reference_schedule() -> None:
    config = load_config({})
    reference = (config.sh_interval, config.densify_from, config.densify_until, config.densify_every)
    assert reference == (1000, 500, 15_000, 100) and config.opacity_reset_every == 0


def test_every_preset_loads_changes_something_fits_a_screen_and_is_explained_in_the_guide() -> None:
    root = Path(__file__).parents[1]
    guide, known = (root / "docs" / "guide" / "captures.md").read_text(), presets()
    assert set(known) >= {"object", "indoor", "aerial", "street", "internet", "quick", "city", "low-memory", "mcmc"}
    for name, purpose in known.items():
        config = load_config({}, preset=name)
        assert isinstance(config, Config) and config != load_config({}), name
        assert len((root / "configs" / f"{name}.yaml").read_text().splitlines()) <= 24 and len(purpose) > 30, name
        assert f"--preset {name}`" in guide or f"--preset {name} " in guide, name


def test_backgrounds() -> None:
    assert parse_background("white") == (1.0, 1.0, 1.0)
    assert parse_background("0.1,0.2,0.3") == (0.1, 0.2, 0.3)
    assert parse_background("random") is None


def test_the_configuration_of_a_run_can_be_used_again(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("data: somewhere\niterations: 123\n")
    assert load_config({}, file=file).iterations == 123


def test_the_choices_of_a_key_are_those_that_the_code_knows() -> None:
    choices = {f.name: f.metadata["choices"] for f in fields()}
    assert choices["offload"] == OFFLOADS
    assert set(choices["moments"]) == MOMENT_BYTES.keys() == MOMENT_TYPES.keys()
    assert set(choices["colour_bus"]) == COLOUR_BUS_BYTES.keys()
    assert choices["gpu_memory"] == choices["host_memory"] == (AUTO,)
