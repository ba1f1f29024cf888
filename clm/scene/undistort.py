"""From the camera COLMAP calibrated to the pinhole camera that is trained: distortion, photo size, training size.

Distortion is undone by pycolmap with no blank pixels inside the result and the principal point exactly where the
undistorted camera puts it. A photo much larger than its training size is first shrunk to `OVERSAMPLING` times that
size, because undistorting costs 90 ns per pixel of its result (12 megapixels: 1.1 s) and the later resize hides the
difference.
Invariant: the same numbers make the camera and the pixels, so both always agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from clm.camera import FAR, MAX_SIDE, MAX_VALUE, NEAR, Camera
from clm.errors import ClmError

OVERSAMPLING = 1.5
_EXPORT = "Export the model from COLMAP again, or remove the camera."

# Models with one focal length f are held as their generalisation with fx, fy, so that unequal scaling of the axes stays
# exact: (general model, number of zero parameters to append).
_GENERAL = {
    "SIMPLE_PINHOLE": ("PINHOLE", 0),
    "SIMPLE_RADIAL": ("OPENCV", 3),
    "RADIAL": ("OPENCV", 2),
    "SIMPLE_RADIAL_FISHEYE": ("OPENCV_FISHEYE", 3),
    "RADIAL_FISHEYE": ("OPENCV_FISHEYE", 2),
    "SIMPLE_DIVISION": ("DIVISION", 0),
    "SIMPLE_FISHEYE": ("FISHEYE", 0),
}


@dataclass(frozen=True)
class SourceCamera:
    """A calibrated camera for images of width x height px; params start with fx, fy, cx, cy (px)."""

    model: str  # COLMAP's name, two-focal form
    colmap_model: str  # COLMAP's name as in the file, for messages
    width: int
    height: int
    params: tuple[float, ...]

    @property
    def is_pinhole(self) -> bool:
        return self.model == "PINHOLE"

    def resized(self, width: int, height: int) -> SourceCamera:
        """The same camera for an image resampled to width x height; distortion acts on normalised coordinates."""
        sx, sy = width / self.width, height / self.height
        fx, fy, cx, cy, *rest = self.params
        return SourceCamera(self.model, self.colmap_model, width, height, (fx * sx, fy * sy, cx * sx, cy * sy, *rest))

    def pycolmap(self) -> Any:
        import pycolmap

        model = getattr(pycolmap.CameraModelId, self.model)
        return pycolmap.Camera(model=model, width=self.width, height=self.height, params=np.array(self.params))


@dataclass(frozen=True)
class Training:
    """How a photo becomes a training image: shrink to `working`, undistort (None: nothing to undo), resize."""

    working: SourceCamera | None  # distorted, at the size that is undistorted
    pinhole: tuple[int, int, float, float, float, float]  # undistorted: width, height, fx, fy, cx, cy
    full_width: int  # px, undistorted at the photo's own resolution
    width: int  # px, training size
    height: int

    def camera(self, world_to_camera: np.ndarray, near: float = NEAR, far: float = FAR) -> Camera:
        """The pinhole camera at training size, for a pose [4, 4] f64."""
        return Camera(*self.pinhole, world_to_camera, near, far).resized(self.width, self.height)


def source_camera(camera: Any, where: str = "the model") -> SourceCamera:
    """Plain values of a pycolmap.Camera; zero distortion on a pinhole-like model becomes PINHOLE."""
    name, params = camera.model_name, [float(p) for p in camera.params]
    size = f"{camera.width}x{camera.height}"
    if not (min(camera.width, camera.height) >= 1 and max(camera.width, camera.height) <= MAX_SIDE):
        raise ClmError(f"Camera {camera.camera_id} of {where} is {size} px, which is no size of a photo.", _EXPORT)
    focal = [params[k] for k in camera.focal_length_idxs()]
    if not np.isfinite(params).all() or np.abs(params).max() > MAX_VALUE or not min(focal, default=1.0) > 0:
        values = ", ".join(f"{p:g}" for p in params)
        raise ClmError(f"Camera {camera.camera_id} of {where} has impossible parameters: {name} {values}.", _EXPORT)
    if name == "EQUIRECTANGULAR":
        raise ClmError(
            "The camera model EQUIRECTANGULAR is not supported: a panorama has no single pinhole view. "
            "Every other COLMAP model is.",
            "Cut the panoramas into perspective images and run COLMAP on those.",
        )
    general = name
    if name in _GENERAL:
        general, zeros = _GENERAL[name]
        params = [params[0], *params, *[0.0] * zeros]
    if camera.is_perspective_pinhole() and camera.is_undistorted():
        general, params = "PINHOLE", params[:4]
    return SourceCamera(general, name, int(camera.width), int(camera.height), tuple(params))


def undistorted(source: SourceCamera) -> tuple[int, int, float, float, float, float]:
    """Width, height, fx, fy, cx, cy (px) of the pinhole camera whose image shows no blank pixel."""
    if source.is_pinhole:
        fx, fy, cx, cy = source.params
        return source.width, source.height, fx, fy, cx, cy
    import pycolmap

    camera = pycolmap.undistort_camera(pycolmap.UndistortCameraOptions(), source.pycolmap())
    fx, fy, cx, cy = (float(p) for p in camera.params)
    return int(camera.width), int(camera.height), fx, fy, cx, cy


def training_size(width: int, height: int, downscale: int | str, max_size: int) -> tuple[int, int]:
    """Size (px) after `downscale` ("auto" is 1), the longer side capped at max_size; never larger than the input."""
    factor = 1 if downscale == "auto" else int(downscale)
    width, height = _rounded(width / factor), _rounded(height / factor)
    longer = max(width, height)
    if longer > max_size:
        width, height = _rounded(width * max_size / longer), _rounded(height * max_size / longer)
    return width, height


def plan_training(source: SourceCamera, downscale: int | str, max_size: int) -> Training:
    """For a photo of the source camera's size: what to do with it, and the camera that results."""
    full = undistorted(source)
    width, height = training_size(full[0], full[1], downscale, max_size)
    if source.is_pinhole:
        return Training(None, full, full[0], width, height)
    shrink = min(1.0, OVERSAMPLING * max(width / full[0], height / full[1]))
    working = source.resized(_rounded(source.width * shrink), _rounded(source.height * shrink))
    return Training(working, undistorted(working), full[0], width, height)


def undistort_pixels(pixels: np.ndarray, working: SourceCamera) -> np.ndarray:
    """Undistort [H, W, 3] or [H, W] u8 of the working camera's size; the result has the size of `undistorted`."""
    import pycolmap

    bitmap = pycolmap.Bitmap.from_array(np.ascontiguousarray(pixels))
    result, _ = pycolmap.undistort_image(pycolmap.UndistortCameraOptions(), bitmap, working.pycolmap())
    return result.to_array()


def _rounded(size: float) -> int:
    return max(1, int(size + 0.5))
