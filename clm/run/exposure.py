"""The exposures of a run's training photos, learned beside the rows: a few numbers a photo, on the host, on any device.

They have an Adam of their own (`optim.adam` is for rows), in which a photo's moments and steps count its visits. After each step
the mean over all photos goes to zero. Rates rise over the first images, when colours are still those of points, and fall later. A
photo of which points say how it was exposed (`scene.brightness`) begins there.
Invariant: a function of the gradients in the order of the batch's views; nothing here depends on placement or threads.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clm.config import Config
from clm.files import write_json
from clm.image.exposure import CHANGE, LOG_GAIN, OFFSET, PARAMETERS, ViewExposure, matrix_of, parameter_gradient
from clm.run.arrays import Damaged
from clm.run.events import Emit, Message
from clm.run.schedule import Schedule
from clm.scene import Scene
from clm.scene.brightness import FEWEST_PHOTOS, Judged, judged_photos, mean_difference

FILE = "exposure.json"
_DIFFER = 0.05  # of full brightness: photos whose exposures change colours by more, in the mean, are corrected
_RATE, _LAST_RATE, _WARM_UP = 0.001, 0.1, 0.05  # of a log gain; share of it at the end; share of a run
_BETA1, _BETA2, _EPS = 0.9, 0.999, 1e-15
_RATES = np.array([1.0, *[0.5] * 9, *[0.5] * 3])
_LEAST_GAIN = 0.05  # of a photo as judged; beneath it the points say nothing
_COLUMNS = 3 * PARAMETERS + 1  # parameters, both moments, visits


class SavedExposures(NamedTuple):
    """As a checkpoint has them."""

    names: list[str]
    values: np.ndarray  # [names, 40] f64

    @classmethod
    def parse(cls, state: Any) -> SavedExposures:
        """Raises Damaged."""
        wrong = Damaged("`exposure` is not what a run writes there")
        names, text = (state.get(key) for key in ("names", "values")) if isinstance(state, dict) else (None, None)
        if not (isinstance(names, list) and all(type(name) is str for name in names) and isinstance(text, str)):
            raise wrong
        try:
            values = np.frombuffer(base64.b64decode(text, validate=True), "<f8").reshape(len(names), _COLUMNS)
        except ValueError:
            raise wrong from None
        if len(set(names)) < len(names) or not np.isfinite(values).all() or (values[:, 2 * PARAMETERS :] < 0).any():
            raise wrong
        return cls(names, values.astype(np.float64))


class Exposures:
    """Of the training views of a run; of none, where photos are taken as they are."""

    def __init__(self, names: Mapping[int, str], values: np.ndarray):
        """names: by view id; values [views, 40] f64 in that order."""
        self._names, self._values = list(names.values()), values
        self._rows = {view: row for row, view in enumerate(names)}
        self._under_way: list[tuple[int, ViewExposure]] = []

    @property
    def on(self) -> bool:
        return bool(self._rows)

    def of(self, view: int) -> ViewExposure | None:
        """For a view about to be compared with its photo; None: as it is."""
        if not self.on:
            return None
        row = self._rows[view]
        exposure = ViewExposure(matrix_of(self._values[row, :PARAMETERS]))
        self._under_way.append((row, exposure))
        return exposure

    def seen(self, view: int, colour: tuple[float, float, float]) -> tuple[float, float, float]:
        """A colour of the model as the photo of a view shows it."""
        if not self.on:
            return colour
        matrix = matrix_of(self._values[self._rows[view], :PARAMETERS])
        r, g, b = (float(value) for value in matrix[:, :3] @ np.array(colour, np.float32) + matrix[:, 3])
        return r, g, b

    def gradients(self) -> list[np.ndarray]:
        """[12] f64 each: what this rank's views say of their maps, in their order; NaN where there is nothing to learn."""
        given = [_on_host(exposure.gradient) for _, exposure in self._under_way]
        return [v.reshape(-1) if v.shape == (3, 4) else np.full(12, np.nan) for v in given]

    def give(self, gradients: Sequence[tuple[int, np.ndarray]]) -> None:
        """Instead of what this rank's own views say: (view, gradient of its map [3, 4] f64) of all views of the batch, in its
        order."""
        self._under_way = [(self._rows[view], ViewExposure(v, v)) for view, v in gradients] if self.on else []

    def step(self, schedule: Schedule) -> None:
        """One step for the photos of a batch that is over, whose first image the schedule is at. Waits for the device where
        there is one: all of the batch is done there."""
        given, self._under_way = self._under_way, []
        sums: dict[int, np.ndarray] = {}
        for row, exposure in given:
            v_matrix = _on_host(exposure.gradient)
            if v_matrix.shape == (3, 4) and np.isfinite(v_matrix).all() and v_matrix.any():
                sums[row] = sums.get(row, 0.0) + v_matrix
        for row, v_matrix in sums.items():
            _adam(self._values[row], v_matrix, rate_at(schedule.image / schedule.config.iterations))
        if sums:
            self._values[:, :PARAMETERS] = centred(self._values[:, :PARAMETERS])

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        if not self.on:
            return {}
        values = base64.b64encode(self._values.astype("<f8").tobytes()).decode()
        return {"exposure": {"names": self._names, "values": values}}

    def write(self, run: Path, image: int) -> None:
        """`exposure.json`, beside the PLY whose colours it is relative to."""
        if not self.on:
            return
        images = {
            name: {
                "log_gain": float(p[LOG_GAIN]),
                "matrix": (np.eye(3) + p[CHANGE].reshape(3, 3)).tolist(),
                "offset": p[OFFSET].tolist(),
            }
            for name, p in zip(self._names, self._values, strict=True)
        }
        seen = "exp(log_gain) * (matrix @ rgb) + offset, with rgb of the exported model, in 0..1"
        write_json(run / FILE, {"iteration": image, "seen": seen, "images": images})


def _on_host(v_matrix: Any) -> np.ndarray:
    return np.asarray(v_matrix.cpu() if hasattr(v_matrix, "cpu") else v_matrix, np.float64)


def rate_at(progress: float) -> float:
    """The rate of a log gain when a share `progress` of the run is done."""
    return _RATE * min(1.0, progress / _WARM_UP) * _LAST_RATE**progress


def centred(parameters: np.ndarray) -> np.ndarray:
    """[V, columns] with zero mean over the photos."""
    return parameters - parameters.mean(axis=0)


def _adam(values: np.ndarray, v_matrix: np.ndarray, rate: float) -> None:
    """One visit of a photo: values [40], in place (Kingma & Ba 2015, algorithm 1)."""
    parameters, exp_avg, exp_avg_sq = np.split(values[: 3 * PARAMETERS], 3)  # views
    gradient = parameter_gradient(parameters, v_matrix)
    values[-1] += 1
    exp_avg += (1 - _BETA1) * (gradient - exp_avg)
    exp_avg_sq += (1 - _BETA2) * (gradient**2 - exp_avg_sq)
    mean, square = exp_avg / (1 - _BETA1 ** values[-1]), exp_avg_sq / (1 - _BETA2 ** values[-1])
    parameters -= rate * _RATES * mean / (np.sqrt(square) + _EPS)


def begin_exposures(scene: Scene, config: Config, emit: Emit) -> Exposures:
    """Of a run that begins, and why, in one line."""
    if config.exposure == "off":
        return _none()
    judged = judged_photos(scene)
    if config.exposure == "auto":
        on, reason = _decided(judged, scene)
        emit(Message(f"exposure: {'on' if on else 'off'}, because {reason} (--exposure {'off' if on else 'on'})"))
        if not on:
            return _none()
    values = np.array([_as_judged(photo.likely) for photo in judged.values()]).reshape(-1, _COLUMNS)
    values = centred(values) if len(values) else values  # those that were not judged are taken for average
    return _of_scene(scene, dict(zip((scene.views[view].name for view in judged), values, strict=True)))


def resume_exposures(scene: Scene, config: Config, saved: SavedExposures | None, emit: Emit) -> Exposures:
    """Of a run that goes on: as it began, unless --exposure says otherwise now."""
    if config.exposure == "off" or (saved is None and config.exposure == "auto"):
        return _none()
    if saved is None:
        return begin_exposures(scene, config, emit)
    return _of_scene(scene, dict(zip(saved.names, saved.values, strict=True)))


def _none() -> Exposures:
    return Exposures({}, np.zeros((0, _COLUMNS)))


def _of_scene(scene: Scene, known: Mapping[str, np.ndarray]) -> Exposures:
    """known: values [40] by name; other training views are neutral."""
    names = {int(view): scene.views[view].name for view in scene.train}
    values = np.zeros((len(names), _COLUMNS))
    for row, name in enumerate(names.values()):
        values[row] = known.get(name, 0.0)
    if set(known) != set(names.values()):  # as they are in a run that goes on with the same photos
        values[:, :PARAMETERS] = centred(values[:, :PARAMETERS])
    return Exposures(names, values)


def _as_judged(matrix: np.ndarray) -> np.ndarray:
    """Values [40] that map colours as the matrix [3, 4] does, never visited."""
    values, gain = np.zeros(_COLUMNS), np.trace(matrix[:, :3]) / 3
    if gain > _LEAST_GAIN:
        values[LOG_GAIN], values[OFFSET] = np.log(gain), matrix[:, 3]
        values[CHANGE] = (matrix[:, :3] / gain - np.eye(3)).reshape(-1)
    return values


def _decided(judged: Mapping[int, Judged], scene: Scene) -> tuple[bool, str]:
    """Whether to correct exposures, and why."""
    if len(judged) < FEWEST_PHOTOS:
        what = (
            "the model has no observations" if not scene.observed else "too few photos show enough points of the model"
        )
        return False, f"{what} to compare exposures by"
    differ_by, points = mean_difference(judged), sum(photo.points for photo in judged.values())
    differ = differ_by > _DIFFER
    return differ, (
        f"exposures change the colours of a photo by {100 * differ_by:.1f}% of full brightness, "
        f"{'more' if differ else 'not more'} than {100 * _DIFFER:.0f}%, as {points:,} points in {len(judged)} photos show"
    )
