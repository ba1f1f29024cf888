"""Finding and reading COLMAP models, and what is said about bad ones."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pycolmap
import pytest

from clm.errors import ClmError
from clm.scene import read_model
from clm.scene.undistort import source_camera
from tests.conftest import scene_path
from tests.scene.synthetic import names, write_model


def test_text_and_binary_give_the_same_model(tmp_path: Path) -> None:
    write_model(tmp_path / "a" / "sparse" / "0", names(3))
    write_model(tmp_path / "b" / "sparse" / "0", names(3), text=True)
    binary, text = read_model(tmp_path / "a"), read_model(tmp_path / "b")
    assert [i.name for i in binary.images] == [i.name for i in text.images] == names(3)
    for a, b in zip(binary.images, text.images, strict=True):
        np.testing.assert_allclose(a.world_to_camera, b.world_to_camera, atol=1e-12)
        assert a.camera == b.camera
    np.testing.assert_array_equal(binary.points, text.points)
    np.testing.assert_array_equal(binary.point_colors, text.point_colors)
    assert len(binary.points) == 20


def test_a_text_model_of_a_real_scene_equals_its_binary_model() -> None:
    text, binary = read_model(scene_path("models/sceaux_txt_simple_pinhole")), read_model(scene_path("sceaux"))
    assert [i.name for i in text.images] == [i.name for i in binary.images]
    for a, b in zip(text.images, binary.images, strict=True):
        np.testing.assert_allclose(a.world_to_camera, b.world_to_camera, atol=1e-9)
    np.testing.assert_allclose(text.points, binary.points, atol=1e-9)


@pytest.mark.parametrize("place", ["sparse/0", "sparse", "."])
def test_a_model_is_found_in(place: str, tmp_path: Path) -> None:
    write_model(tmp_path / "model", names(2))
    if place == ".":
        path = tmp_path / "model"
    else:
        path = tmp_path / "scene"
        shutil.copytree(tmp_path / "model", path / place)
    assert len(read_model(path).images) == 2


def test_of_several_models_the_largest_is_used_and_said(tmp_path: Path) -> None:
    write_model(tmp_path / "sparse" / "0", names(2))
    write_model(tmp_path / "sparse" / "1", names(5), text=True)
    largest = read_model(tmp_path)
    assert len(largest.images) == 5 and largest.folder.name == "1"
    assert "0: 2, 1: 5" in largest.messages[0] and "--model" in largest.messages[0]
    assert len(read_model(tmp_path, model=0).images) == 2
    with pytest.raises(ClmError, match=r"No COLMAP model .*7.*one of: 0, 1"):
        read_model(tmp_path, model=7)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClmError, match=r"No such directory: .*nowhere"):
        read_model(tmp_path / "nowhere")


def test_no_model_lists_the_places_and_mentions_transforms_json(tmp_path: Path) -> None:
    with pytest.raises(ClmError, match=r"No COLMAP model in .*sparse/0/cameras\.bin.*sparse/cameras\.txt") as error:
        read_model(tmp_path)
    assert "transforms" not in str(error.value)
    (tmp_path / "transforms.json").write_text("{}")
    with pytest.raises(ClmError, match=r"transforms\.json was found"):
        read_model(tmp_path)


def test_the_truncated_real_model_is_named_in_one_sentence() -> None:
    with pytest.raises(ClmError, match=r"images\.bin is cut off"):
        read_model(scene_path("models/broken_truncated"))


@pytest.mark.parametrize("stem", ["cameras", "images", "points3D"])
@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.6, 0.99])
def test_a_binary_file_cut_off_anywhere_is_named(stem: str, fraction: float, tmp_path: Path) -> None:
    write_model(tmp_path / "m", names(3))
    file = tmp_path / "m" / f"{stem}.bin"
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * fraction)])
    with pytest.raises(ClmError, match=rf"{stem}\.bin is cut off"):
        read_model(tmp_path / "m")


def test_a_damaged_text_file_is_named(tmp_path: Path) -> None:
    write_model(tmp_path / "m", names(3), text=True)
    file = tmp_path / "m" / "images.txt"
    file.write_bytes(file.read_bytes()[:-60])
    with pytest.raises(ClmError, match=r"Cannot read the COLMAP model in .*images\.txt is damaged"):
        read_model(tmp_path / "m")


@pytest.mark.parametrize("text", [False, True])
def test_a_model_without_points3d_loads_with_no_points(text: bool, tmp_path: Path) -> None:
    write_model(tmp_path / "m", names(3), text=text)
    (tmp_path / "m" / ("points3D.txt" if text else "points3D.bin")).unlink()
    model = read_model(tmp_path / "m")
    assert len(model.images) == 3 and model.points.shape == (0, 3) and model.point_colors.shape == (0, 3)
    assert "no 3D points" in model.messages[0]


def test_a_model_without_registered_images_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path / "m", [], with_points=False)
    with pytest.raises(ClmError, match="no registered image"):
        read_model(tmp_path / "m")


def test_an_unknown_camera_model_lists_the_supported_ones_and_the_undistorter(tmp_path: Path) -> None:
    write_model(tmp_path / "m", names(1))
    file = tmp_path / "m" / "cameras.bin"
    data = bytearray(file.read_bytes())
    struct.pack_into("<i", data, 12, 77)
    file.write_bytes(data)
    with pytest.raises(ClmError, match=r"number 77.*OPENCV_FISHEYE.*colmap image_undistorter"):
        read_model(tmp_path / "m")


def test_a_panorama_is_refused_by_name() -> None:
    camera = pycolmap.Camera.create_from_model_name(1, "EQUIRECTANGULAR", 1.0, 80, 40)
    with pytest.raises(ClmError, match="EQUIRECTANGULAR"):
        source_camera(camera)


@pytest.mark.parametrize("stem", ["rigs", "frames"])
def test_an_absurd_count_in_rigs_or_frames_is_named_before_colmap_believes_it(stem: str, tmp_path: Path) -> None:
    write_model(tmp_path / "sparse" / "0", names(3))
    path = tmp_path / "sparse" / "0" / f"{stem}.bin"
    assert read_model(tmp_path).images  # whole as written
    data = bytearray(path.read_bytes())
    data[0:8] = (2**40).to_bytes(8, "little")
    path.write_bytes(data)
    with pytest.raises(ClmError, match=rf"{stem}\.bin is cut off"):
        read_model(tmp_path)
    path.write_bytes(bytes(data[:-1]))
    with pytest.raises(ClmError, match=rf"{stem}\.bin is cut off"):
        read_model(tmp_path)


def test_reading_a_model_leaves_sigterm_to_python(tmp_path: Path) -> None:
    write_model(tmp_path / "sparse" / "0", names(3))
    code = "import os, sys; from clm.scene import read_model; read_model(sys.argv[1]); os.kill(os.getpid(), 15)"
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (-15, "")  # pycolmap's handler prints a stack trace


def test_ctrl_c_while_pycolmap_is_imported_is_no_missing_package() -> None:
    """It would come out of the import as an ImportError that advises to install it."""
    code = (
        "import os, signal, sys\n"
        "class Interrupts:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'pyceres':  # looked for inside the extension's own start\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupts())\n"
        "from clm.scene import read_model\n"
        "try:\n"
        "    read_model(sys.argv[1])\n"
        "    print('nothing was imported there')\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')\n"
    )
    scene = Path(__file__).resolve().parents[2] / "data" / "demo"
    ended = subprocess.run([sys.executable, "-c", code, str(scene)], capture_output=True, text=True, timeout=60)
    if ended.stdout == "nothing was imported there\n":
        pytest.skip("this pycolmap imports nothing while its extension starts")
    assert (ended.returncode, ended.stdout) == (0, "interrupted\n"), ended.stderr
