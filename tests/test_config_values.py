"""Whatever is written for a key, it is accepted properly or refused in one sentence with a value that works."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from clm.config import Config, field_type, fields, from_dict, to_dict
from clm.errors import ClmError
from clm.settings import load_config

KEYS = [f.name for f in fields()]
NUMBERS = [f for f in fields() if field_type(f.name) in (int, float)]
NONSENSE: list[Any] = [
    *([], [1], {}, {"a": 1}, True, False, "", " ", "nonsense", "\0", "nan", "inf", "-inf", "1e999", "0x10", "1_0"),
    *(float("nan"), float("inf"), -float("inf"), -1, -1e-9, 0, 0.5, 1e300, 10**30, -(10**30), 2**31, 2**63),
    *(
        "1e-4",
        "12k",
        "-5",
        "٣",
        "8GiB",
        "1" * 5000,
        "auto",
        "black",
        "1,2,3",
        "0.1,nan,0",
        "a\nb",
        b"bytes",
        "x" * 9999,
    ),
]


def refusal(values: dict[str, Any], file: Path) -> ClmError | None:
    """What loading a file of `values` says; a configuration that loads survives a round trip."""
    file.write_text(yaml.safe_dump(values, allow_unicode=True))
    try:
        config = load_config({}, file=file)
    except ClmError as error:
        return error
    assert from_dict(to_dict(config), "again") == config
    return None


@pytest.mark.parametrize("key", KEYS)
def test_every_key_takes_its_default_and_refuses_nonsense_in_one_sentence(tmp_path: Path, key: str) -> None:
    file = tmp_path / "mine.yaml"
    assert refusal({key: getattr(load_config({}), key)}, file) is None
    said = [str(error) for value in NONSENSE if (error := refusal({key: value}, file)) is not None]
    assert len(said) >= 3, "what is nonsense for this key?"
    for text in said:
        assert "\n" not in text and len(text) < 300
        assert key in text or ("not a count" in text and "mine.yaml" in text), text


@pytest.mark.parametrize("key", KEYS)
def test_an_empty_value_is_the_default_where_that_is_empty_and_refused_elsewhere(tmp_path: Path, key: str) -> None:
    error, optional = refusal({key: None}, tmp_path / "mine.yaml"), getattr(Config(), key) is None
    assert (error is None) == optional
    assert optional or f"`{key}` in {tmp_path / 'mine.yaml'} has no value" in str(error)


@pytest.mark.parametrize("f", NUMBERS, ids=lambda f: f.name)
def test_every_number_has_bounds_and_a_value_beyond_one_is_refused_with_a_line_that_works(
    tmp_path: Path, f: Any
) -> None:
    assert f.metadata["lo"] is not None and f.metadata["hi"] is not None
    for beyond in (f.metadata["lo"] - 1, 2 * f.metadata["hi"] + 1):
        error = refusal({f.name: beyond}, tmp_path / "mine.yaml")
        assert error is not None and "must be at" in str(error), beyond
        (line,) = re.findall(r"`(.*)`", error.fix)
        (tmp_path / "better.yaml").write_text(line)
        load_config({}, file=tmp_path / "better.yaml")
    for bound in (f.metadata["lo"], f.metadata["hi"]):
        assert refusal({f.name: bound}, tmp_path / "mine.yaml") is None


def test_whole_numbers_are_never_cut_off(tmp_path: Path) -> None:
    assert "whole number" in str(refusal({"iterations": 100.7}, tmp_path / "mine.yaml"))
    assert load_config({"iterations": 100.0}).iterations == 100
    assert load_config({"iterations": "3e4"}).iterations == 30_000


def test_numbers_that_yaml_takes_for_texts_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("means_lr: 1e-4\ndownscale: 4\ngpu_memory: 1000000\n")
    config = load_config({}, file=tmp_path / "mine.yaml")
    assert (config.means_lr, config.downscale, config.gpu_memory) == (1e-4, "4", "1000000")


@pytest.mark.parametrize(
    "text",
    [
        "1: 2",
        "? [a]\n: 1",
        "!!python/object:os.system {}",
        "x: 2020-13-45",
        "[" * 3000,
        "\x00",
        "a: &a [*a, *a]",
        "- 1",
    ],
)
def test_a_file_of_any_text_is_refused_in_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ClmError) as caught:
        load_config({}, file=tmp_path / "mine.yaml")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1200


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(b"\xff\xfe\x9c iterations: 5")
    with pytest.raises(ClmError, match=r"mine\.yaml"):
        load_config({}, file=tmp_path / "mine.yaml")


def test_five_hundred_damaged_configurations_never_end_in_a_traceback(tmp_path: Path) -> None:
    """Bytes of a run's own config.yaml flipped, cut, doubled, or replaced by what YAML finds interesting."""
    whole = yaml.safe_dump({"data": "somewhere", **to_dict(load_config({}))}, sort_keys=False).encode()
    rng, refused, file = random.Random(5), 0, tmp_path / "config.yaml"
    for _ in range(500):
        text = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            at, length = rng.randrange(len(text)), rng.randint(1, 12)
            kind = rng.randrange(5)
            if kind == 0:
                text[at] ^= 1 << rng.randrange(8)
            elif kind == 1:
                del text[at : at + length]
            elif kind == 2:
                text[at:at] = text[at : at + length]
            elif kind == 3:
                text[at:at] = bytes(rng.choices(b"-:?[]{}&*!|>'\"%@`#,.0e~\n\t\0\xff", k=length))
            else:
                end = text.find(b"\n", at)
                text[at : at if end < 0 else end] = rng.choice([b": null", b": .nan", b": -.inf", b": [1]", b": -7"])
        file.write_bytes(text)
        try:
            load_config({}, file=file)
        except ClmError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 200


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        ({"max_gaussians": "0"}, "max_gaussians"),
        ({"threads": 32768}, "threads"),
        ({"batch_size": 1_000_000}, "batch_size"),
        ({"iterations": 0}, "iterations"),
        ({"offload": "cloud"}, "offload"),
        ({"downscale": "3"}, "downscale"),
    ],
)
def test_a_flag_beyond_its_bounds_is_refused_with_a_flag_that_is_accepted(flags: dict[str, Any], part: str) -> None:
    with pytest.raises(ClmError, match=part) as caught:
        load_config(flags)
    [(name, value)] = re.findall(r"`--(\S+) (\S+)`", caught.value.fix)
    load_config({name.replace("-", "_"): value})


def test_a_resumed_run_keeps_its_configuration_but_for_what_is_given() -> None:
    run = load_config({"iterations": 6000, "batch_size": 8, "sh0_lr": 1e-3, "trace": "first.json", "densify_every": 50})
    assert load_config({}, resumed=run) == load_config({"trace": None}, resumed=run)
    resumed = load_config({"batch_size": 2}, resumed=run)
    assert (resumed.iterations, resumed.batch_size, resumed.sh0_lr) == (6000, 2, 1e-3)
    assert resumed.densify_until == run.densify_until and resumed.trace is None


def test_a_schedule_that_was_computed_stretches_with_a_longer_run_and_a_given_one_stays() -> None:
    run = load_config({"iterations": 6000, "densify_until": 1234})
    longer, fresh = load_config({"iterations": 12_000}, resumed=run), load_config({"iterations": 12_000})
    assert longer.densify_until == 1234
    assert (longer.sh_interval, longer.densify_from) == (fresh.sh_interval, fresh.densify_from) != (200, 100)
