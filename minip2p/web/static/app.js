// The page: reads the forms, asks the API, shows runs.

import { drawAlignment } from "./alignment.js";
import { connect } from "./api.js";
import { Brush } from "./brush.js";
import { comparison } from "./compare.js";
import { debounce, el, stored } from "./dom.js";
import { Objects } from "./objects.js";
import { RunView } from "./view.js";

const $ = (id) => document.getElementById(id);
const api = await connect();
let model;

function alert(message) {
  $("alert").textContent = message;
  $("alert").hidden = !message;
}

const isKnown = (word) => !model.words || model.words.includes(word.toLowerCase());

const brush = new Brush($("brush-size"), () => scheduleEdit());
const objects = new Objects($("objects"), {
  onchange: () => scheduleEdit(true),
  onsee: () => $("edit-progress").scrollIntoView({ behavior: "smooth" }),
  find: async (list) => (await runJob("places", "places", { ...editFields(), objects: list }))?.places,
});
const views = Object.fromEntries([["source", "Picture"], ["edit", "Edited picture"]].map(([name, label]) => [
  name, new RunView($(`${name}-view`), {
    api, label, alert, isKnown, recipe: showRecipe, actions: name === "edit" && !api.isStatic ? { "Edit this picture": (run) => useAsSource(run) } : {},
    onbuild: (view) => name === "source" && [brush, objects].forEach((layer) => layer.attach(view)),
  })]));

// Jobs. One form runs one job at a time; a new one takes the place of the former.

const running = {};

async function runJob(name, kind, body, { onEvent = () => {}, isInView = false } = {}) {
  running[name]?.abort();
  const control = running[name] = new AbortController();
  const bar = $(`${name}-progress`);
  let isCancelled = false;
  const cancel = el("button", { type: "button", className: "cancel", onclick: () => {
    isCancelled = true;
    control.abort();
  } }, "Cancel");
  alert("");
  const text = el("span", { role: "status" }, "…");
  const meter = el("progress", { max: 1, "aria-label": "Progress" });
  bar.replaceChildren(meter, text, cancel);
  if (!isInView) bar.scrollIntoView({ block: "nearest", behavior: "smooth" });
  let result = null;
  try {
    for await (const event of api.job(kind, body, control.signal)) {
      if (event.type === "queued") text.textContent = event.position ? `waiting: ${event.position} before this` : "starting";
      if (event.type === "step") {
        meter.max = event.steps;
        meter.value = event.step;
        text.textContent = `${event.phase}: step ${event.step} of ${event.steps}`;
      }
      onEvent(event);
      if (event.type === "result") result = event;
    }
    return control.signal.aborted ? null : result;
  } catch (error) {
    if (error.name !== "AbortError" && !control.signal.aborted) alert(error.message);
    return null;
  } finally {
    if (running[name] === control) {
      delete running[name];
      bar.replaceChildren(...(isCancelled ? [el("span", { role: "status" }, "Cancelled.")] : []));
      if (!result) views[name]?.restore();
    }
  }
}

const withPreview = (view) => (event) => event.preview && view.preview(event.preview);

/** A word as the library names it: the second "a" of a prompt is "a#2". */
function named(words) {
  const counts = new Map();
  const total = (text) => words.filter((word) => word.text === text).length;
  return words.map(({ text }) => {
    counts.set(text, (counts.get(text) || 0) + 1);
    return total(text) > 1 ? `${text}#${counts.get(text)}` : text;
  });
}

// The picture.

async function generate() {
  const body = api.isStatic ? { example: Number($("prompt").value) } : {
    prompt: $("prompt").value, seed: Number($("seed").value), steps: Number($("steps").value), guidance: Number($("guidance").value), preview: true,
  };
  const result = await runJob("source", "generate", body, { onEvent: withPreview(views.source) });
  if (result) useAsSource(result.run);
  return result;
}

$("form-generate").addEventListener("submit", (event) => {
  event.preventDefault();
  generate();
});

$("other-seed").addEventListener("click", () => {
  $("seed").value = Math.floor(Math.random() * 1e6);
  $("form-generate").requestSubmit();
});

let photo = null;

async function takePhoto(file) {
  alert("");
  try {
    photo = await api.photo(file);
  } catch (error) {
    alert(error.message);
    return;
  }
  $("photo-preview").src = photo.picture;
  $("photo-preview").alt = `The photograph, ${photo.size[1]} × ${photo.size[0]} pixels`;
  $("photo-preview").hidden = false;
  $("photo-notes").textContent = [file.name, ...photo.notes].join(" · ");
  chooseTab("photo");
  $("photo-prompt").focus();
}

$("file").addEventListener("change", async () => {
  const [file] = $("file").files;
  if (!file) return;
  await takePhoto(file);
  $("file").value = ""; // so that the same file can be chosen again
});
addEventListener("pageshow", () => { $("file").value = ""; });

$("form-invert").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (!photo) {
    alert("Choose a photograph first.");
    return;
  }
  const result = await runJob("source", "invert", {
    photo: photo.photo, prompt: $("photo-prompt").value, method: $("method").value, steps: Number($("photo-steps").value), preview: false,
  });
  if (result) useAsSource(result.run);
});

// Drop a picture anywhere: one made by minip2p gives its settings back, any other is a photograph.

addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
addEventListener("dragleave", (event) => event.relatedTarget || document.body.classList.remove("dropping"));
addEventListener("drop", async (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  const [file] = event.dataTransfer.files;
  if (!file || api.isStatic) return;
  if (file.name.endsWith(".safetensors")) {
    alert("This page opens no run files: edit them with minip2p edit, or pipe.open in Python. A PNG of this page brings its settings back.");
    return;
  }
  try {
    await useSettings((await api.settings(file)).settings);
  } catch {
    await takePhoto(file);
  }
});

/** The settings of a picture that minip2p made; those of an edit bring its source and the edit back. */
async function useSettings(settings) {
  chooseTab("prompt");
  $("prompt").value = settings.source ?? settings.prompt;
  for (const [id, value] of [["seed", settings.seed], ["steps", settings.steps], ["guidance", settings.guidance]]) {
    if (value !== null && value !== undefined) setValue($(id), value);
  }
  if (settings.method) {
    alert(`This picture was edited from a photograph (${settings.method} inversion), which its file does not hold.`);
    return;
  }
  if (!await generate() || settings.source === null) return;
  if (await useEditSettings(settings)) await edit();
}

/** The settings of an edit of the picture that is shown. -> whether all of them could be used. */
async function useEditSettings(settings) {
  $("target").value = settings.prompt;
  await describeTargetNow();
  setValue($("cross"), settings.cross ?? model.defaults.cross);
  setValue($("self"), settings.self ?? model.defaults.self);
  for (const [word, weight] of Object.entries(settings.weights ?? {})) if (weights.has(word)) setValue(weights.get(word), weight);
  for (const side of ["source", "target"]) {
    blend[side].clear();
    for (const word of settings.blend?.[side] ?? []) blend[side].add(word);
  }
  $("paste").checked = settings.paste;
  await describeTargetNow();
  $("objects").open = Boolean(settings.objects?.length);
  return !settings.objects?.length || objects.add(settings.objects);
}

function chooseTab(name) {
  for (const [tab, form] of [["prompt", "generate"], ["photo", "invert"]]) {
    const isChosen = tab === name;
    $(`tab-${tab}`).setAttribute("aria-selected", String(isChosen));
    $(`tab-${tab}`).tabIndex = isChosen ? 0 : -1;
    $(`form-${form}`).hidden = !isChosen;
  }
}

for (const [name, other] of [["prompt", "photo"], ["photo", "prompt"]]) {
  $(`tab-${name}`).addEventListener("click", () => chooseTab(name));
  $(`tab-${name}`).addEventListener("keydown", (event) => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    chooseTab(other);
    $(`tab-${other}`).focus();
  });
}

function useAsSource(run) {
  const isNew = views.source.run?.id !== run.id;
  views.source.show(run);
  views.edit.clear();
  $("sheet").replaceChildren();
  $("edit-fields").disabled = $("grid-fields").disabled = false;
  if (isNew) {
    history.replaceState({ run: run.id }, "");
    brush.clear(false);
    objects.begin(api.isStatic ? [] : named(run.words));
    $("target").value = api.isStatic ? api.example.target : run.prompt;
    describeTarget();
  }
  if (api.isStatic) edit();
}

// The edit.

const weights = new Map(); // word of the target -> slider
const blend = { source: new Set(), target: new Set() };

function editFields() {
  const list = [...weights].filter(([, slider]) => Number(slider.value) !== 1).map(([word, slider]) => [word, Number(slider.value)]);
  const words = { source: [...blend.source], target: [...blend.target] };
  return {
    run: views.source.run.id, target: $("target").value, cross: Number($("cross").value), self: Number($("self").value),
    weights: Object.fromEntries(list), blend: words.source.length + words.target.length ? words : null, region: brush.region(),
    objects: objects.request,
  };
}

async function edit(isInView = false) {
  if (!views.source.run || !$("target").value.trim()) return;
  const isFirst = views.edit.isEmpty;
  const body = { ...editFields(), paste: $("paste").checked, compare: $("compare").checked, preview: true };
  const result = await runJob("edit", "edit", body, { onEvent: isFirst ? withPreview(views.edit) : previewInPlace, isInView });
  if (!result) return;
  history.replaceState({ run: result.run.id }, "");
  objects.locate(result.places ?? {});
  showEdit(result);
}

/** While a slider is dragged, the picture that is being made appears where the last one was. */
function previewInPlace(event) {
  const after = document.querySelector("#edit-view .compare img:not(.before)"); // whatever view is chosen
  if (event.preview && after) after.src = event.preview;
}

async function showEdit(result) {
  const { run } = result;
  const source = result.source || views.source.run;
  await Promise.all([new Image(), new Image()].map((image, n) => {
    image.src = [run.picture, source.picture][n];
    return image.decode().catch(() => {});
  }));
  views.edit.show(run);
  const box = $("edit-view");
  box.prepend(comparison(api, { run, source, plain: result.plain }));
}

/** isWanted: also where no edit is shown yet, by a person who looks at the first picture. */
const scheduleEdit = debounce((isWanted) => (isWanted === true || !views.edit.isEmpty) && edit(isWanted === true), 120);

async function describeTargetNow() {
  const target = $("target").value;
  if (!views.source.run || !target.trim()) return;
  let alignment;
  try {
    alignment = await api.align(views.source.run.prompt, target);
  } catch (error) {
    alert(error.message);
    return;
  }
  if (target !== $("target").value) return;
  alert("");
  drawAlignment($("alignment"), alignment);
  listWeights(alignment.target);
  listBlendWords(alignment);
  listAxes(alignment.target);
}

const describeTarget = debounce(describeTargetNow, 150);

function listWeights(words) {
  const former = new Map(weights);
  weights.clear();
  const names = named(words);
  $("weight-fields").replaceChildren(...words.map(({ index }, n) => {
    const text = names[n];
    const id = `weight-${index}`;
    const value = el("output", { htmlFor: id });
    const slider = el("input", { id, type: "range", min: -4, max: 8, step: 0.25, value: former.get(text)?.value ?? 1 });
    const show = () => { value.textContent = slider.value; };
    slider.addEventListener("input", () => {
      show();
      scheduleEdit();
    });
    show();
    weights.set(text, slider);
    return el("div", {}, el("label", { htmlFor: id }, `${text} `, value), slider);
  }));
}

function listBlendWords({ source, target }) {
  const buttons = [];
  for (const [side, words, where] of [["source", source, "in the first prompt"], ["target", target, "in the new prompt"]]) {
    for (const text of blend[side]) if (!words.some((word) => word.text === text)) blend[side].delete(text);
    for (const { text } of words) {
      const isShared = side === "target" && source.some((word) => word.text === text);
      if (isShared || buttons.some((button) => button.value === `${side}:${text}`)) continue;
      const isInBoth = side === "source" && target.some((word) => word.text === text);
      buttons.push(el("button", {
        type: "button", value: `${side}:${text}`, title: isInBoth ? "in both prompts" : where, "aria-pressed": String(blend[side].has(text)),
        onclick: (event) => {
          const isOn = event.currentTarget.getAttribute("aria-pressed") === "false";
          event.currentTarget.setAttribute("aria-pressed", String(isOn));
          for (const set of isInBoth ? [blend.source, blend.target] : [blend[side]]) {
            if (isOn) set.add(text);
            else set.delete(text);
          }
          scheduleEdit();
        },
      }, text));
    }
  }
  $("blend-words").replaceChildren(...buttons);
}

$("form-edit").addEventListener("submit", (event) => {
  event.preventDefault();
  edit();
});
$("target").addEventListener("input", describeTarget);
for (const id of ["cross", "self"]) $(id).addEventListener("input", scheduleEdit);
for (const id of ["paste", "compare"]) $(id).addEventListener("change", scheduleEdit);
$("brush").addEventListener("click", () => {
  const isOn = $("brush").getAttribute("aria-pressed") === "false";
  $("brush").setAttribute("aria-pressed", String(isOn));
  brush.isOn = views.source.isBrushing = isOn;
  $("source-view").classList.toggle("brushing", isOn);
  if (isOn) views.source.quiet();
  if (isOn) $("source-view").scrollIntoView({ block: "nearest", behavior: "smooth" });
});
$("brush-clear").addEventListener("click", () => brush.clear());
brush.onchange = (isEmpty) => { $("brush-clear").hidden = isEmpty; };

// The grid.

function listAxes(words) {
  const options = [["cross", "layout: cross τ"], ["self", "shapes: self τ"], ...named(words).map((text) => [`weight:${text}`, `weight of “${text}”`])];
  for (const [id, fallback] of [["x-name", "cross"], ["y-name", "self"]]) {
    const former = $(id).value;
    $(id).replaceChildren(...options.map(([value, text]) => el("option", { value }, text)));
    $(id).value = options.some(([value]) => value === former) ? former : fallback;
  }
}

const numbers = (id) => $(id).value.split(/[,;\s]+/).filter(Boolean).map(Number);

$("form-grid").addEventListener("submit", async (event) => {
  event.preventDefault();
  const axes = { x: { name: $("x-name").value, values: numbers("x-values") }, y: { name: $("y-name").value, values: numbers("y-values") } };
  for (const { values } of Object.values(axes)) {
    if (!values.length || values.some(Number.isNaN)) {
      alert("The values of the grid are numbers with commas between them, as in 0, 0.4, 0.8.");
      return;
    }
  }
  if (axes.x.name === axes.y.name) {
    alert("The grid shows two different settings: choose another one for across or down.");
    return;
  }
  const cells = new Map();
  const label = (id) => $(id).selectedOptions[0].textContent;
  const table = el("table", {}, el("caption", {}, `${label("x-name")} across, ${label("y-name")} down`),
    el("thead", {}, el("tr", {}, el("td"), ...axes.x.values.map((x) => el("th", { scope: "col" }, String(x))))),
    el("tbody", {}, ...axes.y.values.map((y, j) => el("tr", {}, el("th", { scope: "row" }, String(y)),
      ...axes.x.values.map((x, i) => {
        const cell = el("td", {}, el("span", { className: "empty" }));
        cells.set(`${i},${j}`, cell);
        return cell;
      })))));
  const onEvent = (cellEvent) => {
    if (!table.isConnected) $("sheet").replaceChildren(table); // the server has accepted the values
    if (cellEvent.type !== "cell") return;
    const { x, y, run } = cellEvent;
    cells.get(`${x},${y}`).replaceChildren(el("button", { type: "button", "aria-pressed": "false", onclick: (click) => {
        table.querySelectorAll("button").forEach((button) => button.setAttribute("aria-pressed", String(button === click.currentTarget)));
        openCell(axes, x, y, run);
      } },
      el("img", { src: run.picture, alt: `${axes.x.name} ${axes.x.values[x]}, ${axes.y.name} ${axes.y.values[y]}` })));
  };
  const body = { ...editFields(), ...axes };
  if (api.isStatic) {
    for (const [j, y] of axes.y.values.entries()) {
      for (const [i, x] of axes.x.values.entries()) {
        for await (const { run } of api.job("edit", { ...body, [axes.x.name]: x, [axes.y.name]: y })) onEvent({ type: "cell", x: i, y: j, run });
      }
    }
    return;
  }
  await runJob("grid", "grid", body, { onEvent });
});

function openCell(axes, x, y, run) {
  for (const [axis, n] of [[axes.x, x], [axes.y, y]]) {
    const value = axis.values[n];
    const input = axis.name.startsWith("weight:") ? weights.get(axis.name.slice(7)) : $(axis.name);
    if (input) setValue(input, value);
  }
  showEdit({ run }).then(() => $("edit-view").scrollIntoView({ block: "nearest", behavior: "smooth" }));
}

// A page that is left and opened again, by "back" or a reload, has its forms, and the runs that the server still has.

const REMEMBERED = ["prompt", "seed", "steps", "guidance", "photo-prompt"];

addEventListener("pagehide", () => {
  if (!api.isStatic) stored("sessionStorage", "minip2p-form", JSON.stringify(Object.fromEntries(REMEMBERED.map((id) => [id, $(id).value]))));
});

async function recall() {
  const values = JSON.parse(stored("sessionStorage", "minip2p-form") ?? "{}");
  for (const id of REMEMBERED) if (values[id] !== undefined) setValue($(id), values[id]);
  const id = history.state?.run;
  const { run, source, settings } = id ? await api.run(id).catch(() => ({})) : {};
  if (!run) return;
  useAsSource(source ?? run);
  if (!source) return;
  await useEditSettings(settings);
  history.replaceState({ run: run.id }, "");
  showEdit({ run, source });
}

// Take home, colours, start.

async function showRecipe(run) {
  try {
    const { python, command, files = [] } = await api.recipe(run);
    $("recipe-files").replaceChildren(...files.map(({ name, url }) => el("a", { href: url, download: name }, name)));
    $("recipe-needs").hidden = !files.length;
    $("recipe-python").textContent = python;
    $("recipe-command").textContent = command ?? "No single command line makes this picture.";
    $("recipe").showModal();
  } catch (error) {
    alert(error.message);
  }
}

for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText($(button.dataset.copy).textContent);
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
}

function setValue(input, value) {
  input.value = value;
  input.dispatchEvent(new Event("input"));
}

for (const input of document.querySelectorAll('input[type="range"]')) {
  const output = document.querySelector(`output[for="${input.id}"]`);
  if (output) input.addEventListener("input", () => { output.textContent = input.value; });
}

const THEMES = ["system", "light", "dark"];

function setTheme(theme) {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  $("theme").setAttribute("aria-label", `Colours: ${theme === "system" ? "as the system" : theme}`);
  $("theme").title = $("theme").getAttribute("aria-label");
  stored("localStorage", "minip2p-theme", theme);
}

$("theme").addEventListener("click", () => setTheme(THEMES[(THEMES.indexOf(document.documentElement.dataset.theme || "system") + 1) % THEMES.length]));

async function start() {
  const theme = stored("localStorage", "minip2p-theme");
  setTheme(THEMES.includes(theme) ? theme : "system");
  model = await api.model();
  for (const [id, value] of [["steps", model.defaults.steps], ["photo-steps", model.defaults.steps], ["guidance", model.guidance],
    ["cross", model.defaults.cross], ["self", model.defaults.self]]) setValue($(id), value);
  $("steps").max = $("photo-steps").max = model.limits.steps;
  $("method").append(...model.methods.map(({ name, label }) => el("option", { value: name }, label)));
  $("method").value = "direct";
  $("about").textContent = `minip2p ${model.version} · ${model.name} · ${model.size[1]} × ${model.size[0]} pixels`;
  if (api.isStatic) {
    const prompts = el("select", { id: "prompt", name: "prompt", onchange: () => $("form-generate").requestSubmit() },
      ...api.data.examples.map((example, n) => el("option", { value: n }, `${example.source.prompt} → ${example.target}`)));
    $("prompt").replaceWith(prompts);
    document.body.classList.add("static");
    $("target").readOnly = true;
    document.querySelector('label[for="prompt"]').textContent = "Example";
    $("form-generate").requestSubmit();
    return;
  }
  if (model.words) {
    $("vocabulary").querySelector("p").textContent = model.words.join(", ");
    $("vocabulary").hidden = false;
  }
  $("prompt").value = model.examples[0]?.prompt ?? "";
  if (model.examples[0]) setValue($("seed"), model.examples[0].seed);
  await recall();
}

start().catch((error) => alert(error.message));
