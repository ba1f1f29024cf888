"""COLMAP model and photos -> views, start points, decoded training images; cameras in and out, and along paths."""

from clm.scene.cache import ImageCache
from clm.scene.cameras import camera_from_json, cameras_json
from clm.scene.colmap import Model, read_model
from clm.scene.decode import CorruptImage
from clm.scene.georef import read_georef, write_georef
from clm.scene.scene import Scene, View, load_scene

__all__ = [
    "CorruptImage",
    "ImageCache",
    "Model",
    "Scene",
    "View",
    "camera_from_json",
    "cameras_json",
    "load_scene",
    "read_georef",
    "read_model",
    "write_georef",
]
