"""The cameras of a model and their photos: what there is of them, read when it is asked for."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clm.camera import Camera
from clm.errors import ClmError
from clm.report.facts import number
from clm.run.begun import read_run_config, read_split
from clm.scene import CorruptImage, Scene, View
from clm.scene.camera_files import read_camera_file
from clm.scene.colmap import read_model
from clm.scene.decode import decode_cut_out, decode_image, decode_opacity, decode_small
from clm.scene.open import open_scene
from clm.view.compare import Photo

_KEPT = 3  # decoded photos


@dataclass(frozen=True, eq=False)
class Place:
    """A camera of the scene. held_out: not trained on. psnr: of its render when the run was measured last, in dB."""

    name: str
    camera: Camera
    held_out: bool = False
    psnr: float | None = None


class Album:
    """Places by number, and photos of them; may be asked from any thread."""

    def __init__(self, places: Sequence[Place], views: Mapping[str, View] | None = None):
        """views: of the scene, by name; None: they come later (`find`), or never."""
        self.places = list(places)
        self._views = views
        self._photos: OrderedDict[int, Photo | None] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def cameras(self) -> list[Camera]:
        return [place.camera for place in self.places]

    @property
    def found(self) -> bool:
        """Whether it is known where photos are."""
        return self._views is not None

    def find(self, views: Mapping[str, View]) -> None:
        with self._lock:
            self._views = views
            self._photos.clear()

    def photo(self, place: int) -> Photo | None:
        """The photo of a place as it is trained on; None where there is none."""
        with self._lock:
            if place in self._photos:
                self._photos.move_to_end(place)
                return self._photos[place]
            view = self._view(place)
            photo = _decoded(view) if view is not None else None
            if self.found:
                self._photos[place] = photo
                while len(self._photos) > _KEPT:
                    self._photos.popitem(last=False)
            return photo

    def thumbnail(self, place: int, side: int) -> np.ndarray | None:
        """The photo [h, w, 3] u8 at about `side` px; None where there is none."""
        view = self._view(place)
        if view is None or view.image_path is None:
            return None
        try:
            pixels = decode_small(view.image_path, side)
        except CorruptImage:
            return None
        step = max(1, max(pixels.shape[:2]) // side)
        return np.ascontiguousarray(pixels[::step, ::step])

    def _view(self, place: int) -> View | None:
        return (self._views or {}).get(self.places[place].name)


def _decoded(view: View) -> Photo | None:
    if view.image_path is None:
        return None
    try:
        if view.mask_path is None:
            return Photo(decode_image(view.image_path, view.training), None)
        if view.transparent:  # over black, as pictures are that are not trained on
            return Photo(decode_cut_out(view.image_path, view.mask_path, view.training), None)
        opacity = decode_opacity(view.mask_path, view.training, alpha=view.mask_path == view.image_path)
        return Photo(decode_image(view.image_path, view.training), opacity >= 128)
    except CorruptImage:
        return None


def album_of_scene(scene: Scene) -> Album:
    """Of the scene that a run trains on, photos and all."""
    held_out = set(scene.test.tolist())
    places = [Place(view.name, view.camera, k in held_out) for k, view in enumerate(scene.views)]
    return Album(places, {view.name: view for view in scene.views})


def album_of_run(run: Path, metrics: object = None) -> Album:
    """Of a run directory: the cameras that it wrote, without photos as yet. metrics: of `metrics.json`, for figures of views."""
    path = run / "cameras.json"
    if not path.exists():
        return Album([])
    named = read_camera_file(path, np.zeros(3)).named
    try:
        split = read_split(run, read_run_config(run)[1])
    except ClmError:
        split = None
    held_out = split.test if split is not None else frozenset()

    def psnr(name: str) -> float | None:
        return next(
            (value for part in ("test", "train") if (value := number(metrics, part, "per_view", name, "psnr"))), None
        )

    return Album([Place(name, camera, name in held_out, psnr(name)) for name, camera in named])


def find_photos(album: Album, run: Path, data: Path | None, say: Callable[[str], None]) -> None:
    """Look for the photos of a run's scene: where it was, or in `data`. `say` hears why there are none. Takes as long as looking
    at the head of each photo does, so it is another thread's work."""
    try:
        before, config = read_run_config(run)
        folder = data or before
        model = read_model(folder, model=config.model, points=False)
        scene = open_scene(folder, config, test_list=None, colmap=model)
    except ClmError as error:
        say(f"No photos: {error.message} Say where the scene is with --data DIR.")
        album.find({})
        return
    except Exception as error:  # a scene that is odd costs its photos only
        say(f"No photos: {error}.")
        album.find({})
        return
    album.find({view.name: view for view in scene.views})
