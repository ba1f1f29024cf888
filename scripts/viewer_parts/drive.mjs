// node drive.mjs < JOB.json: opens every file in its viewer, looks from every camera, and writes what the page then shows.
//
// JOB: { base: address of the server, packages: folder with node_modules, chromium: program, settle: seconds,
//        angle: what draws (ANGLE's backend),
//        sights: [{ id, viewer, url, options, views: [entry of cameras.json, with near, far and `picture`, the PNG to write] }] }
// Out: one line of JSON for each sight: { id, seconds, complaints: [text], error: text or null }.
//
// Viewers sort in workers that lag behind. So the first view is looked at and thrown away, and every other one is looked at until
// three pictures in a row are equal, some time apart.
import fs from "node:fs";
import path from "node:path";
import { createRequire } from "node:module";
import { address } from "./supersplat.mjs";

const EQUAL = 3, TRIES = 60, PATIENCE = 600_000;
const job = JSON.parse(fs.readFileSync(0, "utf8"));
const puppeteer = createRequire(path.join(job.packages, "/"))("puppeteer-core");
const browser = await puppeteer.launch({
  executablePath: job.chromium, headless: true, protocolTimeout: PATIENCE,
  env: { ...process.env, LIBGL_ALWAYS_SOFTWARE: "1", EGL_PLATFORM: "surfaceless" },  // of gl-egl alone
  args: ["--no-sandbox", "--use-gl=angle", `--use-angle=${job.angle}`, "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist",
    "--disable-dev-shm-usage", "--force-color-profile=srgb", "--hide-scrollbars"],
});

/** PNG of the page once it no longer changes. A picture of one colour is that of a page which has not begun. */
async function settled(page, view, look) {
  let before = null;
  for (let tries = 0, equal = 0; tries < TRIES; tries++) {
    await look();
    await new Promise(resolve => setTimeout(resolve, 1000 * job.settle));
    const now = Buffer.from(await page.screenshot({ type: "png" }));
    const begun = now.length > view.width * view.height / 100;
    equal = begun && before !== null && now.equals(before) ? equal + 1 : 1;
    before = now;
    if (equal === EQUAL) return now;
  }
  throw new Error(`no ${EQUAL} pictures in a row were equal, or nothing was drawn`);
}

/** A page whose complaints are collected. */
async function opened(view, complaints) {
  const page = await browser.newPage();
  page.on("console", message => { if (message.type() === "error") complaints.push(message.text()); });
  page.on("pageerror", error => complaints.push(error.message));
  page.on("response", response => { if (response.status() >= 400) complaints.push(`${response.status()} ${response.url()}`); });
  await page.setViewport({ width: view.width, height: view.height, deviceScaleFactor: 1 });
  return page;
}

async function inOurPage(sight, complaints) {
  const { width, height } = sight.views[0];
  const page = await opened(sight.views[0], complaints);
  await page.goto(`${job.base}/parts/page.html?viewer=${sight.viewer}`);
  await page.waitForFunction("window.viewer || window.broken", { timeout: PATIENCE });
  const broken = await page.evaluate("window.broken ?? null");
  if (broken) throw new Error(broken);
  await page.evaluate((...given) => window.viewer.open(...given), sight.url, width, height, sight.options);
  const look = view => page.evaluate(given => window.viewer.look(given), view);
  await look(sight.views.at(-1));
  for (const view of sight.views) fs.writeFileSync(view.picture, await settled(page, view, () => look(view)));
  await page.close();
}

async function inSuperSplat(sight, complaints) {
  for (const view of sight.views) {
    const page = await opened(view, complaints);
    await page.evaluateOnNewDocument("window.firstFrame = () => { window.drawn = true; }");  // it calls that
    await page.goto(address(job.base, sight.url, view, sight.options));
    await page.waitForFunction("window.drawn", { timeout: PATIENCE });
    fs.writeFileSync(view.picture, await settled(page, view, () => {}));
    await page.close();
  }
}

try {
  for (const sight of job.sights) {
    const began = Date.now(), complaints = [];
    let error = null;
    try {
      await (sight.viewer === "supersplat" ? inSuperSplat : inOurPage)(sight, complaints);
    } catch (failure) {
      error = String(failure.message ?? failure).split("\n")[0];
      for (const page of (await browser.pages()).slice(1)) await page.close();
    }
    const line = { id: sight.id, seconds: (Date.now() - began) / 1000, complaints: [...new Set(complaints)], error };
    process.stdout.write(JSON.stringify(line) + "\n");
  }
} finally {
  await browser.close();
}
