// Spark (World Labs) in three.js. Splats keep the file's axes: the camera is in the file's frame.
import * as THREE from "three";
import { SparkRenderer, SplatMesh } from "@sparkjsdev/spark";
import { easel, pause, pose, projection } from "./camera.mjs";

const FRAMES = 2;
let renderer, scene, target, paint;

export async function open(url, width, height, options) {
  renderer = new THREE.WebGLRenderer({ antialias: false });
  renderer.setPixelRatio(1);
  renderer.setSize(width, height);
  renderer.setClearColor(0x000000, 1);
  target = new THREE.WebGLRenderTarget(width, height, { type: THREE.FloatType, colorSpace: THREE.SRGBColorSpace });
  target.isXRRenderTarget = true;  // else Spark takes a target for linear, and blends other colours than on a canvas
  renderer.setRenderTarget(target);
  paint = easel(width, height);
  scene = new THREE.Scene();
  scene.add(new SparkRenderer({ renderer, ...options.spark }));
  const mesh = new SplatMesh({ url });
  scene.add(mesh);
  await mesh.initialized;
}

export async function look(view) {
  const camera = new THREE.PerspectiveCamera();
  camera.matrixAutoUpdate = false;
  camera.matrix.fromArray(pose(view));
  camera.matrix.decompose(camera.position, camera.quaternion, camera.scale);
  camera.updateMatrixWorld(true);
  camera.near = view.near;
  camera.far = view.far;
  camera.projectionMatrix.fromArray(projection(view));
  camera.projectionMatrixInverse.copy(camera.projectionMatrix).invert();
  for (let frame = 0; frame < FRAMES; frame++) {
    renderer.clear();
    renderer.render(scene, camera);
    await pause(30);
  }
  const { width, height } = target, pixels = new Float32Array(4 * width * height);
  renderer.readRenderTargetPixels(target, 0, 0, width, height, pixels);
  paint(pixels);
}
