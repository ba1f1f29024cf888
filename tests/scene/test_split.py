"""Which views are held out: a list of names or stems, and what is wrong with one."""

from __future__ import annotations

from pathlib import Path

import pytest

from clm.errors import ClmError
from clm.scene import load_scene
from clm.scene.split import split_by_list
from tests.scene.synthetic import write_scene

NAMES = ["cam0/0001.jpg", "cam0/0002.jpg", "cam1/0002.jpg", "cam1/0003.png", "x.y.jpg"]


def held_out(tmp_path: Path, text: str | bytes, names: list[str] = NAMES, registered: list[str] = NAMES) -> list[str]:
    (tmp_path / "list.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    messages: list[str] = []
    train, test = split_by_list(names, registered, tmp_path / "list.txt", messages)
    assert sorted([*train, *test]) == list(range(len(names))) and messages
    return [names[k] for k in test]


@pytest.mark.parametrize(
    "entry",
    ["cam0/0001.jpg", "cam0/0001", "0001.jpg", "0001", "./cam0//0001.jpg", "cam0\\0001.jpg", "  0001 \r"],
)
def test_an_entry_is_a_name_or_a_stem_with_its_folder_or_without(tmp_path: Path, entry: str) -> None:
    assert held_out(tmp_path, entry) == ["cam0/0001.jpg"]


def test_blank_lines_comments_repetitions_and_a_byte_order_mark_are_no_names(tmp_path: Path) -> None:
    assert held_out(tmp_path, b"\xef\xbb\xbfx.y\n\n# held out\n0003\r\nx.y.jpg\n") == ["cam1/0003.png", "x.y.jpg"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0001\n0009.jpg\nnothing like it", "2 of 3 entries of .* are no images of the model .first: `0009.jpg`.*Did you mean"),
        ("cam0/0001.jgp", "Did you mean `cam0/0001.jpg`?"),
        ("??", "Write names as COLMAP has them, such as `cam0/0001.jpg`"),
        ("0002", "`0002` in .* could be 2 images: cam0/0002.jpg, cam1/0002.jpg.*whole name"),
        ("# nothing", "names no image"),
        ("\n".join(NAMES), "holds out all 5 images"),
        ("a\0b", "is not a text"),
        ("x" * 5000, "such as"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_list_is_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ClmError, match=said) as caught:
        held_out(tmp_path, text)
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)


def test_an_image_without_a_photo_may_be_named(tmp_path: Path) -> None:
    assert held_out(tmp_path, "0001\n0003", names=NAMES[:3]) == ["cam0/0001.jpg"]


def test_a_list_is_found_in_the_scene_or_from_here_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_scene(tmp_path / "scene", 4)
    names = [view.name for view in load_scene(path).views]
    (path / "inside.txt").write_text(names[2])
    (tmp_path / "here.txt").write_text(names[1])
    monkeypatch.chdir(tmp_path)
    assert load_scene(path, test_list="inside.txt").test.tolist() == [2]
    scene = load_scene(path, test_list="here.txt")
    assert scene.test.tolist() == [1] and scene.train.tolist() == [0, 2, 3]
    assert any("1 of 4 images are held out" in text for text in scene.messages)
    with pytest.raises(ClmError, match=r"No such file: gone\.txt"):
        load_scene(path, test_list="gone.txt")
