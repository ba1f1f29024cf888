// The PlayCanvas engine. A frame is drawn where one is asked for.
import * as pc from "playcanvas";
import { easel, fieldOfView, pause, pose, projection } from "./camera.mjs";

const FRAMES = 2;
let app, eye, target, paint;

/** Splats of our footprint: blurred by 0.3 px^2 (the engine's 0.3 are of half pixels, so 0.075), and falling off to where one level of
 *  255 is left, instead of to zero at 2.83 standard deviations. */
function matchFootprint(device) {
  const chunks = pc.ShaderChunks.get(device, pc.SHADERLANGUAGE_GLSL), squared = 2 * Math.log(255);  // of a radius in deviations
  const edits = [
    ["gsplatPS", "(exp(x * -4.0) - EXP4) * INV_EXP4", `exp(x * -${squared / 2})`],
    ["gsplatCornerVS", " + 0.3", " + 1.2"],
    ["gsplatCornerVS", "2.0 * min(sqrt(2.0 * lambda1), vmin)", `2.0 * min(sqrt(${squared / 4} * lambda1), vmin)`],
    ["gsplatCornerVS", "2.0 * min(sqrt(2.0 * lambda2), vmin)", `2.0 * min(sqrt(${squared / 4} * lambda2), vmin)`],
  ];
  for (const [name, theirs, ours] of edits) {
    const code = chunks.get(name);
    if (!code.includes(theirs)) throw new Error(`${name} of this version is another one`);
    chunks.set(name, code.replaceAll(theirs, ours));
  }
}

export async function open(url, width, height, options) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const device = await pc.createGraphicsDevice(canvas, { deviceTypes: ["webgl2"], antialias: false });
  device.maxPixelRatio = 1;
  const parts = new pc.AppOptions();
  parts.graphicsDevice = device;
  parts.componentSystems = [pc.CameraComponentSystem, pc.GSplatComponentSystem, pc.LightComponentSystem, pc.RenderComponentSystem];
  parts.resourceHandlers = [pc.TextureHandler, pc.ContainerHandler, pc.GSplatHandler];
  app = new pc.AppBase(canvas);
  app.init(parts);
  app.autoRender = false;
  app.setCanvasFillMode(pc.FILLMODE_NONE, width, height);
  app.setCanvasResolution(pc.RESOLUTION_FIXED, width, height);
  app.start();
  app.scene.gsplat.colorUpdateAngle = 0;  // else colours are those of a camera up to ten degrees away
  app.scene.gsplat.minPixelSize = app.scene.gsplat.minContribution = 0;  // small and faint splats are part of the picture
  app.scene.gsplat.antiAlias = Boolean(options.antialiased);
  if (options.matched) matchFootprint(device);
  app.scene.gsplat.dataFormat = pc.GSPLATDATA_LARGE;  // else a splat is rounded to 20 bytes

  const container = url.endsWith(".glb");
  const asset = new pc.Asset("model", container ? "container" : "gsplat", { url, filename: url.split("/").pop() });
  await new Promise((resolve, reject) => {
    asset.on("load", resolve);
    asset.on("error", reject);
    app.assets.add(asset);
    app.assets.load(asset);
  });
  let model;
  if (container) {
    model = asset.resource.instantiateRenderEntity();
    model.setLocalEulerAngles(0, 0, 180);  // glTF's y points up, that of cameras.json down
  } else {
    model = new pc.Entity("model");
    model.addComponent("gsplat", { asset, unified: true });
    if (options.level !== undefined) {
      model.gsplat.lodRangeMin = model.gsplat.lodRangeMax = options.level;
    }
  }
  app.root.addChild(model);
  const colorBuffer = new pc.Texture(device, {
    width, height, format: pc.PIXELFORMAT_RGBA32F, mipmaps: false, minFilter: pc.FILTER_NEAREST, magFilter: pc.FILTER_NEAREST,
  });
  target = new pc.RenderTarget({ colorBuffer, depth: true });
  paint = easel(width, height);
  eye = new pc.Entity("eye");
  eye.addComponent("camera", { renderTarget: target, clearColor: new pc.Color(0, 0, 0, 1), toneMapping: pc.TONEMAP_NONE });
  app.root.addChild(eye);
}

export async function look(view) {
  const at = new pc.Mat4().set(pose(view));
  eye.setPosition(at.getTranslation());
  eye.setRotation(new pc.Quat().setFromMat4(at));
  const camera = eye.camera;
  camera.nearClip = view.near;
  camera.farClip = view.far;
  camera.fov = fieldOfView(view);
  camera.aspectRatioMode = pc.ASPECT_MANUAL;
  camera.aspectRatio = (view.width / view.fx) / (view.height / view.fy);
  camera.calculateProjection = matrix => matrix.set(projection(view));
  for (let frame = 0; frame < FRAMES; frame++) {
    app.renderNextFrame = true;
    await new Promise(resolve => app.once("frameend", resolve));
    await pause(30);
  }
  paint(await target.colorBuffer.read(0, 0, view.width, view.height, { renderTarget: target, immediate: true }));
}
