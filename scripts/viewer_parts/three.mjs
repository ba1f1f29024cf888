// three.js' own splats: GLB with KHR_gaussian_splatting only.
import * as THREE from "three/webgpu";
import { GLTFLoader } from "three/addons/loaders/GLTFLoader.js";
import { GLTFGaussianSplatLoaderExtension } from "three/addons/loaders/GLTFGaussianSplatLoaderExtension.js";
import { pause, pose, projection } from "./camera.mjs";

const FRAMES = 2;
let renderer, scene;

export async function open(url, width, height) {
  renderer = new THREE.WebGPURenderer({ antialias: false, forceWebGL: true });
  renderer.setPixelRatio(1);
  renderer.setSize(width, height);
  renderer.setClearColor(0x000000, 1);
  renderer.outputColorSpace = THREE.LinearSRGBColorSpace;  // colours of splats are display colours already
  await renderer.init();
  document.body.append(renderer.domElement);
  const loader = new GLTFLoader();
  loader.register(parser => new GLTFGaussianSplatLoaderExtension(parser));
  const model = (await loader.loadAsync(url)).scene;
  model.rotation.z = Math.PI;  // glTF's y points up, that of cameras.json down
  scene = new THREE.Scene();
  scene.add(model);
}

export async function look(view) {
  const camera = new THREE.PerspectiveCamera();
  new THREE.Matrix4().fromArray(pose(view)).decompose(camera.position, camera.quaternion, camera.scale);
  camera.updateMatrixWorld(true);
  camera.near = view.near;
  camera.far = view.far;
  camera.updateProjectionMatrix = () => {};
  camera.projectionMatrix.fromArray(projection(view));
  camera.projectionMatrixInverse.copy(camera.projectionMatrix).invert();
  for (let frame = 0; frame < FRAMES; frame++) {
    await renderer.renderAsync(scene, camera);
    await pause(30);
  }
}
