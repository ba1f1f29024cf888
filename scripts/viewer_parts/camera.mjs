// An entry of cameras.json (camera to world, x right, y down, z forward) as what GL takes: column-major arrays of 16.

/** Camera to world, with GL's axes: x right, y up, z back. */
export function pose({ rotation: R, position: p }) {
  const column = (k, sign) => [sign * R[0][k], sign * R[1][k], sign * R[2][k], 0];
  return [...column(0, 1), ...column(1, -1), ...column(2, -1), ...p, 1];
}

/** Clip space of a pinhole whose principal point may lie anywhere. */
export function projection({ width: w, height: h, fx, fy, cx, cy, near, far }) {
  return [2 * fx / w, 0, 0, 0, 0, 2 * fy / h, 0, 0,
    1 - 2 * cx / w, 2 * cy / h - 1, -(far + near) / (far - near), -1, 0, 0, -2 * far * near / (far - near), 0];
}

/** Angle from the top edge to the bottom edge, degrees. */
export function fieldOfView({ height, fy }) {
  return 2 * Math.atan(height / (2 * fy)) * 180 / Math.PI;
}

/** Time for workers: they sort while frames go by. */
export function pause(milliseconds) {
  return new Promise(resolve => setTimeout(resolve, milliseconds));
}
