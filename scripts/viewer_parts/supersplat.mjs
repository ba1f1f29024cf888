// The SuperSplat viewer as it is published: its own page, whose camera is in the settings that it fetches. Runs in node.

/** Address of the page that shows a file from a camera without roll, whose principal point is its middle. */
export function address(base, url, view, { antialiased }) {
  const turned = ([x, y, z]) => [-x, -y, z];  // the viewer turns files by half a turn about z
  const position = turned(view.position);
  const ahead = turned(view.rotation.map(row => row[2]));
  const longer = 2 * Math.atan(Math.max(view.width / view.fx, view.height / view.fy) / 2) * 180 / Math.PI;
  const off = { enabled: false };
  const settings = {
    version: 2, tonemapping: "none", highPrecisionRendering: false, background: { color: [0, 0, 0] },
    postEffectSettings: {
      sharpness: { ...off, amount: 0 },
      bloom: { ...off, intensity: 0, blurLevel: 2 },
      grading: { ...off, brightness: 1, contrast: 1, saturation: 1, tint: [1, 1, 1] },
      vignette: { ...off, intensity: 0, inner: 0.3, outer: 0.75, curvature: 1 },
      fringing: { ...off, intensity: 0 },
    },
    animTracks: [], annotations: [], startMode: "default",
    cameras: [{ initial: { position, target: position.map((p, i) => p + ahead[i]), fov: longer } }],
  };
  const given = `data:application/json,${encodeURIComponent(JSON.stringify(settings))}`;
  const page = `${base}/npm/@playcanvas/supersplat-viewer/public/index.html`;
  return `${page}?webgl&noui&noanim&nofx${antialiased ? "&aa" : ""}&content=${encodeURIComponent(url)}&settings=${encodeURIComponent(given)}`;
}
