// An edit on the page: before and after under a slider, the plain picture, the difference, the mask.

import { el } from "./dom.js";

export function comparison(api, { run, source, plain }) {
  const after = el("img", { src: run.picture, alt: `After: ${run.prompt}`, draggable: false });
  const before = el("img", { src: source.original || source.picture, alt: `Before: ${source.prompt}`, draggable: false, className: "before" });
  const line = el("span", { className: "line" });
  const stage = el("div", { className: "picture compare" }, after, before, line);
  const slider = el("input", {
    type: "range", min: 0, max: 100, value: 50, "aria-label": "Before and after",
    oninput: () => {
      before.style.clipPath = `inset(0 ${100 - slider.value}% 0 0)`;
      line.style.left = `${slider.value}%`;
    },
  });
  stage.addEventListener("pointermove", (event) => {
    if (event.pointerType === "touch" && !event.buttons) return;
    const box = stage.getBoundingClientRect();
    slider.value = 100 * (event.clientX - box.left) / box.width;
    slider.dispatchEvent(new Event("input"));
  });
  const choices = [
    ["Before | after", () => show(run.picture, true)],
    ...(plain ? [["Without Prompt-to-Prompt", () => show(plain.picture, true)]] : []),
    ...(api.difference(run, source) ? [["Difference", () => show(api.difference(run, source), false)]] : []),
    ...(run.mask ? [["Mask", () => show(run.mask, false)]] : []),
  ];
  function show(url, compared) {
    after.src = url;
    before.hidden = line.hidden = slider.hidden = !compared;
  }
  const buttons = choices.map(([text, action], n) => el("button", {
    type: "button", "aria-pressed": String(n === 0),
    onclick: (event) => {
      buttons.forEach((button) => button.setAttribute("aria-pressed", String(button === event.currentTarget)));
      action();
    },
  }, text));
  slider.dispatchEvent(new Event("input"));
  return el("div", { className: "comparison" },
    el("div", { className: "chips", role: "group", "aria-label": "What is compared" }, ...(choices.length > 1 ? buttons : [])), stage, slider);
}
