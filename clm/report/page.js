"use strict";
// Sliders: how much of the photo lies over the render.
for (const slider of document.querySelectorAll(".compare input")) {
  const show = () => slider.parentElement.style.setProperty("--cut", slider.value + "%");
  slider.addEventListener("input", show);
  show();
}
// Charts: the values at the pointer.
for (const plot of document.querySelectorAll(".plot")) {
  const lines = JSON.parse(plot.dataset.lines), rule = document.createElement("i"), tip = document.createElement("div");
  rule.className = "rule";
  tip.className = "tip";
  rule.hidden = tip.hidden = true;
  plot.append(rule, tip);
  const images = new Intl.NumberFormat("en");
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect(), at = (event.clientX - box.left) / box.width * 1000;
    let x = null;
    const said = lines.map(([name, , points]) => {
      const near = points.reduce((best, p) => Math.abs(p[2] - at) < Math.abs(best[2] - at) ? p : best);
      x = x === null || Math.abs(near[2] - at) < Math.abs(x[2] - at) ? near : x;
      return name + " " + near[1];
    });
    rule.style.left = x[2] / 10 + "%";
    tip.textContent = "image " + images.format(x[0]) + "\n" + said.join("\n");
    tip.style.left = x[2] > 500 ? "auto" : `calc(${x[2] / 10}% + 8px)`;
    tip.style.right = x[2] > 500 ? `calc(${100 - x[2] / 10}% + 8px)` : "auto";
    rule.hidden = tip.hidden = false;
  });
  plot.addEventListener("pointerleave", () => { rule.hidden = tip.hidden = true; });
}
// Dark or light, whatever the system says.
document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement, system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  root.dataset.theme = (root.dataset.theme || system) === "dark" ? "light" : "dark";
});
for (const button of document.querySelectorAll(".copy")) {
  button.addEventListener("click", () => {
    const text = button.previousElementSibling;
    const done = () => { button.textContent = "Copied"; };
    const choose = () => { getSelection().selectAllChildren(text); };
    if (navigator.clipboard) navigator.clipboard.writeText(text.textContent).then(done, choose);
    else choose();
  });
}
