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

/** A canvas on the page that `paint(pixels)` fills: RGBA of 0..1, the lowest row first. Viewers draw into floats and are shown on it,
 *  because a canvas of 8 bits rounds once for every splat: where OpenGL is software, by as much as files differ. */
export function easel(width, height) {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width, height });
  document.body.prepend(canvas);
  const context = canvas.getContext("2d", { alpha: false }), picture = context.createImageData(width, height);
  return pixels => {
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const to = 4 * (y * width + x), from = 4 * ((height - 1 - y) * width + x);
        for (let k = 0; k < 3; k++) picture.data[to + k] = Math.round(255 * pixels[from + k]);  // clamped by its type
        picture.data[to + 3] = 255;
      }
    }
    context.putImageData(picture, 0, 0);
  };
}
