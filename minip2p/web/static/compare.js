// An edit on the page: before and after under a slider, the plain picture, the difference, the mask.

import { el } from "./dom.js";

let chosen = "Before | after"; // the view stays when the edit changes

export function comparison(api, { run, source, plain }) {
  const right = el("img", { src: run.picture, alt: `After: ${run.prompt}`, draggable: false });
  const left = el("img", { alt: "", draggable: false, className: "before" });
  const names = [el("span", { className: "name left" }), el("span", { className: "name right" })];
  const line = el("span", { className: "line" });
  const stage = el("div", { className: "picture compare" }, right, left, line, ...names);
  const slider = el("input", {
    type: "range", min: 0, max: 100, value: 50, "aria-label": "Left and right picture",
    oninput: () => {
      left.style.clipPath = `inset(0 ${100 - slider.value}% 0 0)`;
      line.style.left = `${slider.value}%`;
    },
  });
  stage.addEventListener("pointermove", (event) => {
    if (event.pointerType === "touch" && !event.buttons) return;
    const box = stage.getBoundingClientRect();
    slider.value = 100 * (event.clientX - box.left) / box.width;
    slider.dispatchEvent(new Event("input"));
  });
  const before = [source.original || source.picture, "before"];
  const after = [run.picture, "after"];
  const without = plain && [plain.picture, "without Prompt-to-Prompt"];
  const difference = api.difference(run, source);
  const choices = [
    ["Before | after", before, after],
    ...(plain ? [["Before | without", before, without], ["Without | with", without, [run.picture, "with Prompt-to-Prompt"]]] : []),
    ...(difference ? [["Difference", null, [difference, "bright: half of the range of a colour or more"]]] : []),
    ...(run.mask ? [["Mask", null, [run.mask, "white may change"]]] : []),
  ];
  const isNamed = ([name]) => name === chosen;
  function show([name, a, b]) {
    chosen = name;
    right.src = b[0];
    right.alt = `${b[1]}: ${run.prompt}`;
    names[1].textContent = b[1];
    names[0].textContent = a ? a[1] : "";
    if (a) [left.src, left.alt] = [a[0], a[1]];
    for (const part of [left, line, names[0]]) part.hidden = !a;
    slider.disabled = !a;
    buttons.forEach((button) => button.setAttribute("aria-pressed", String(button.textContent === name)));
  }
  const buttons = choices.map((choice) => el("button", { type: "button", onclick: () => show(choice) }, choice[0]));
  show(choices.find(isNamed) || choices[0]);
  slider.dispatchEvent(new Event("input"));
  return Object.assign(el("div", { className: "comparison" },
    el("div", { className: "chips", role: "group", "aria-label": "What is compared" }, ...(choices.length > 1 ? buttons : [])), stage, slider), {
    restore: () => show(choices.find(isNamed)), // in the place of a preview
  });
}
