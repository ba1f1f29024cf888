"""What a person types and what the parser answers: help, presets, completion, and one sentence for every slip."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from clm.config import Config, fields
from clm.settings import presets
from clm.values import flag_of
from tests.demo_run import REPOSITORY, clm, environment


def start(*arguments: str, where: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    """`python -m clm ARGUMENTS` with the package that lies in `where`."""
    environ, command = {**environment(), "PYTHONPATH": str(where)}, [sys.executable, "-m", "clm", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environ, cwd=where)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("trian data", "No such command: trian. Did you mean `clm train`?"),
        ("frobnicate", "No such command: frobnicate. See `clm --help`."),
        ("--versoin", "`clm` has no option --versoin. Did you mean --version?"),
        ("train data --itrations 3", "`clm train` has no option --itrations. Did you mean --iterations?"),
        ("train data --zzz", "`clm train` has no option --zzz. See `clm train --help`."),
        ("train data --means-lr 1e-4", "write `means_lr: VALUE` into FILE.yaml and pass `--config FILE.yaml`."),
        ("export run out.ply --shh 1", "`clm export` has no option --shh. Did you mean --sh?"),
        ("export run out.spx", "out.spx cannot be a model: no format has the ending `.spx`. Did you mean .spz?"),
        ("export run out.compresed.ply", "Did you mean .compressed.ply?"),
        ("export run out.ply --sh-bits 8", ".ply takes no --sh-bits. It is for .spz."),
        ("export run out.spz --sh-bits 9", "--sh-bits is `9`. Write 8, or 5,4"),
        ("export run out.ply --lod 0", "--lod is 0. Choose 1 to 12 levels."),
        ("export run new/lod-meta.json --lod -2", "--lod is -2. Choose 1 to 12 levels."),
        ("export run new/manifest.json --tile 10", "manifest.json lists the files of a split export."),
        ("export run out.ply --scratch README.md", "--scratch README.md is no folder."),
        ("view run --gpu-memory x", "Not a size in bytes: 'x'."),
        ("eval a.ply --data b --config nowhere.yaml", "configuration nowhere.yaml: No such file or directory."),
        ("eval a.ply --data b --config tests", "configuration tests: Is a directory."),
        ("export run out.ply --crop 1,2", "--crop is `1,2`. Write two corners of a box"),
        ("export run out.ply --min-opacity 2", "--min-opacity is 2."),
        ("export run out.ply --nan maybe", "--nan is `maybe`. Use drop or refuse."),
        ("train", "`clm train` needs DATA: COLMAP scene"),
        ("render run", "`clm render` needs --output: folder to write to, or a video alone."),
        ("train data --iterations many", "--iterations is `many`: it must be a whole number."),
        ("train data --iterations=", "--iterations is ``: it must be a whole number."),
        ("train data --iterations", "--iterations needs a value. See `clm train --help`."),
        ("export run out.ply --sh 7", "--sh is `7`: it must be "),
        ("info one two", "two"),
    ],
)
def test_a_slip_in_typing_gets_one_sentence_that_says_what_to_type(typed: str, said: str) -> None:
    result = clm(*typed.split(" "))
    lines = result.stderr.splitlines()
    assert result.returncode == 2 and result.stdout == ""
    assert len(lines) == 1 and lines[0].startswith("error: ") and said in lines[0], result.stderr


def test_python_m_clm_is_clm_and_without_a_word_it_shows_the_help() -> None:
    bare = start()
    assert bare.returncode == 0 and "Usage: clm" in bare.stdout and "train" in bare.stdout


def test_help_of_train_lists_presets_with_their_purpose_and_groups_options_by_section(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    shown = clm("train", "--help").stdout
    words = " ".join(re.sub("[│─╭╮╰╯]", " ", shown).split())
    assert len(presets()) >= 3
    for name, purpose in presets().items():
        assert purpose.endswith(".") and f"{name}: {purpose}" in words
    headings = [line.strip("╭─╮ ") for line in shown.splitlines() if line.startswith("╭─")]
    assert headings == ["Arguments", "Options", *sections().values()]
    for f in fields():
        if f.metadata["flag"]:
            assert f"--{f.name.replace('_', '-')} " in shown


def sections() -> dict[str, str]:
    """The first field of each section, and its name."""
    return {f.name: f.metadata["section"] for f in fields() if f.metadata["section"]}


def test_the_options_of_clm_plan_are_those_that_a_plan_depends_on() -> None:
    own = {"--machine", "--preset", "--config", "--json", "--help"}
    offered = set(re.findall(r"--[a-z-]+", clm("plan", "--help").stdout))
    planned = {flag_of(f.name) for f in fields() if f.metadata["planned"]}
    assert all(f.metadata["flag"] for f in fields() if f.metadata["planned"])
    assert planned <= offered and not (offered & {flag_of(f.name) for f in fields()}) - planned and own <= offered


def test_sections_are_those_that_the_configuration_is_written_in() -> None:
    """Each `# Heading` of Config that is followed by options with flags names a panel, which begins at its first field."""
    source = (REPOSITORY / "clm" / "config.py").read_text()
    headings = re.findall(r"\n    # (\w+).*\n    (\w+):", source[source.index("class Config:") :])
    names = [f.name for f in fields()]
    starts = [names.index(first) for _, first in headings] + [len(names)]
    flags = [f.metadata["flag"] for f in fields()]
    with_flags = {f: h for (h, f), a, b in zip(headings, starts, starts[1:], strict=False) if any(flags[a:b])}
    assert starts[0] == 0 and with_flags == sections()


def test_an_installed_package_finds_its_presets(tmp_path: Path) -> None:
    """The tree that CMakeLists.txt installs: configs/ inside the package, no checkout around it."""
    lines = (REPOSITORY / "CMakeLists.txt").read_text()
    installed = re.search(r"install\(DIRECTORY \S*/(\w+) DESTINATION (\w+)\)", lines)
    assert installed is not None
    shutil.copytree(REPOSITORY / "clm", tmp_path / "clm", ignore=shutil.ignore_patterns("src", "__pycache__", "*.so"))
    shutil.copytree(REPOSITORY / installed[1], tmp_path / installed[2] / installed[1])
    refused = start("train", "nowhere", "--preset", "quik", where=tmp_path)
    assert refused.returncode == 2 and all(name in refused.stderr for name in presets()), refused.stderr


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("clm tr", {"train"}),
        ("clm train data --preset q", {"quick"}),
        ("clm train data --offload ", {"auto", "none", "host", "disk"}),
        ("clm train data --moments b", {"bf16"}),
        ("clm train data --max-ga", {"--max-gaussians"}),
    ],
)
def test_the_shell_completes_commands_options_presets_and_choices(
    monkeypatch: pytest.MonkeyPatch, line: str, offered: set[str]
) -> None:
    words = {"_CLM_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    for name, value in words.items():
        monkeypatch.setenv(name, value)
    assert set(clm().stdout.split()) == offered


def test_a_metavar_with_bars_lists_values_and_the_default_is_one_of_them() -> None:
    """Words in capitals stand for any value."""
    for f in fields():
        metavar = f.metadata["metavar"] or ""
        if "|" in metavar:
            listed = metavar.split("|")
            assert str(getattr(Config(), f.name)) in listed or any(word.isupper() for word in listed), f.name
