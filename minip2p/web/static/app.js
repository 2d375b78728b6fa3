// The page: reads the forms, asks the API, shows runs.

import { drawAlignment } from "./alignment.js";
import { connect } from "./api.js";
import { Brush } from "./brush.js";
import { comparison } from "./compare.js";
import { announce, debounce, el, reveal, stored } from "./dom.js";
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

const brush = new Brush($("brush-size"), { ondraw: () => scheduleEdit(), onchange: (isEmpty) => { $("brush-clear").hidden = isEmpty; } });
const objects = new Objects($("objects"), {
  onchange: () => scheduleEdit(true),
  onsee: () => reveal($("edit-progress"), "start"),
  find: async (list) => (await runJob("places", "places", { ...editFields(), objects: list }))?.places,
});
const views = Object.fromEntries([["source", "Picture"], ["edit", "Edited picture"]].map(([name, label]) => [
  name, new RunView($(`${name}-view`), {
    api, label, alert, isKnown, recipe: showRecipe, actions: name === "edit" && !api.isStatic ? { "Edit this picture": useAsSource } : {},
    onbuild: (view) => name === "source" && [brush, objects].forEach((layer) => layer.attach(view)),
  })]));

// Jobs. One form runs one job at a time; a new one takes the place of the former.

const running = {};

/** isAsked: a person waits for the job, so its progress is shown. */
async function runJob(name, kind, body, { onEvent = () => {}, isAsked = true } = {}) {
  running[name]?.abort();
  const control = running[name] = new AbortController();
  const bar = $(`${name}-progress`);
  let note = null;
  const cancel = el("button", { type: "button", className: "cancel", onclick: () => {
    note = el("span", { tabIndex: -1 }, "Cancelled.");
    control.abort();
  } }, "Cancel");
  alert("");
  const text = el("span", {}, "…");
  const meter = el("progress", { max: 1, "aria-label": "Progress" });
  bar.replaceChildren(meter, text, cancel);
  if (isAsked) reveal(bar);
  let result = null;
  try {
    for await (const event of api.job(kind, body, control.signal)) {
      if (event.type === "queued") {
        text.textContent = event.position ? `waiting: ${event.position} before this` : "starting";
        if (event.position) announce(text.textContent);
      }
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
      bar.replaceChildren(note ?? "");
      note?.focus(); // which the button had
      if (result) announce(`${kind}: done`);
      else views[name]?.restore();
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
  if (!$("form-generate").reportValidity()) return null;
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
  const answer = await api.settings(file).catch(() => null);
  await (answer ? useSettings(answer.settings) : takePhoto(file));
});

/** The settings of a picture that minip2p made; those of an edit bring its source and the edit back. */
async function useSettings(settings) {
  chooseTab("prompt");
  $("prompt").value = settings.source ?? settings.prompt;
  const lost = ["seed", "steps", "guidance"].map((id) => settings[id] !== null && useValue(id, settings[id]));
  if (settings.method) {
    alert(`This picture was edited from a photograph (${settings.method} inversion), which its file does not hold.`);
    return;
  }
  if (settings.negative) lost.push("its negative prompt is missing");
  if (!await generate()) return;
  if (settings.source !== null) {
    const also = await useEditSettings(settings);
    if (!also || !await edit()) return;
    lost.push(...also);
  }
  tellLost(lost);
}

/** Says which settings of a picture the page has not taken. */
function tellLost(lost) {
  const lines = new Set(lost.filter(Boolean));
  if (lines.size) alert(`Not all of its settings are here: ${[...lines].join("; ")}.`);
}

/** Gives a field a value. -> where it takes another one, which. */
function useValue(id, value, name = id) {
  setValue($(id), value);
  return Number($(id).value) !== value && `${name} is ${$(id).value} instead of ${value}`;
}

/** The settings of an edit of the picture that is shown. -> what the page could not take, or null if the objects have no places. */
async function useEditSettings(settings) {
  const source = views.source.run;
  $("target").value = settings.prompt;
  await describeTargetNow();
  const lost = ["cross", "self"].map((id) => useValue(id, settings[id] ?? model.defaults[id]) || (settings[id] === null && `${id} is the default`));
  for (const [word, { id }] of weights) lost.push(useValue(id, settings.weights?.[word] ?? 1, `the weight of “${word}”`));
  for (const word of Object.keys(settings.weights ?? {})) if (!weights.has(word)) lost.push(`the weight of “${word}” is missing`);
  if (settings.threshold !== null) lost.push("the threshold of the blend is the default");
  if (settings.region) lost.push("the region is not in the file: draw it again");
  for (const side of ["source", "target"]) {
    blend[side].clear();
    for (const word of settings.blend?.[side] ?? []) blend[side].add(word);
  }
  $("paste").checked = settings.paste;
  await describeTargetNow();
  for (const side of ["source", "target"]) {
    for (const word of settings.blend?.[side] ?? []) if (!blend[side].has(word)) lost.push(`“${word}” of the blend is missing`);
  }
  if (!settings.objects) lost.push("its objects are missing");
  $("objects").open = Boolean(settings.objects?.length);
  const isPlaced = !settings.objects?.length || await objects.add(settings.objects);
  return isPlaced && views.source.run === source ? lost : null;
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
  for (const name of ["edit", "grid", "places"]) running[name]?.abort(); // they are about the picture before
  shown = null;
  views.source.show(run);
  views.edit.clear();
  $("sheet").replaceChildren();
  $("edit-fields").disabled = $("grid-fields").disabled = false;
  if (isNew) {
    history.replaceState({ source: run.id }, "");
    brush.clear(false);
    objects.begin(api.isStatic ? [] : named(run.words).filter((_, n) => run.words[n].object));
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

/** -> whether the edit was made. */
async function edit(isAsked = true) {
  if (!views.source.run) return false;
  if (!$("target").value.trim()) {
    alert("Write the new prompt first.");
    return false;
  }
  const body = { ...editFields(), paste: $("paste").checked, compare: $("compare").checked, preview: true };
  const result = await runJob("edit", "edit", body, { onEvent: views.edit.isEmpty ? withPreview(views.edit) : previewInPlace, isAsked });
  if (!result) {
    if (!running.edit) document.querySelector("#edit-view .comparison")?.restore();
    return false;
  }
  objects.locate(result.places ?? {});
  await showEdit(result);
  return true;
}

/** While a slider is dragged, the picture that is being made appears where the last one was. */
function previewInPlace(event) {
  const after = document.querySelector("#edit-view .compare img:not(.before)"); // whatever view is chosen
  if (event.preview && after) after.src = event.preview;
}

let shown = null; // the edit that was asked for last

async function showEdit({ run, plain }) {
  const source = views.source.run;
  shown = run;
  await Promise.all([new Image(), new Image()].map((image, n) => {
    image.src = [run.picture, source.picture][n];
    return image.decode().catch(() => {});
  }));
  if (shown !== run) return;
  history.replaceState({ source: source.id, edit: run.id }, "");
  views.edit.show(run);
  $("edit-view").prepend(comparison(api, { run, source, plain }));
}

/** isWanted: also where no edit is shown or on its way yet. */
const scheduleEdit = debounce((isWanted) => (isWanted === true || running.edit || !views.edit.isEmpty) && edit(false), 120);

async function describeTargetNow() {
  const [source, target] = [views.source.run, $("target").value];
  if (!source || !target.trim()) return;
  let alignment, problem;
  try {
    alignment = await api.align(source.prompt, target);
  } catch (error) {
    problem = error.message;
  }
  if (source !== views.source.run || target !== $("target").value) return;
  if (problem) {
    $("alignment").replaceChildren(el("p", { className: "note", role: "status" }, problem));
    return;
  }
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
    const slider = el("input", { id, type: "range", min: -4, max: 8, step: 0.25, value: former.get(text)?.value ?? 1, oninput: scheduleEdit });
    weights.set(text, slider);
    return el("div", {}, el("label", { htmlFor: id }, `${text} `, el("output", { htmlFor: id }, slider.value)), slider);
  }));
}

function listBlendWords({ source, target }) {
  const buttons = [];
  for (const [side, words, where] of [["source", source, "in the first prompt"], ["target", target, "in the new prompt"]]) {
    for (const text of blend[side]) if (!words.some((word) => word.text === text)) blend[side].delete(text);
    for (const { text, object } of words) {
      if (!object && ![blend.source, blend.target].some((set) => set.has(text))) continue;
      const isShared = side === "target" && source.some((word) => word.text === text);
      if (isShared || buttons.some((button) => button.value === `${side}:${text}`)) continue;
      const isInBoth = side === "source" && target.some((word) => word.text === text);
      buttons.push(el("button", {
        type: "button", value: `${side}:${text}`, title: isInBoth ? "in both prompts" : where,
        "aria-pressed": String(blend[side].has(text) || (isInBoth && blend.target.has(text))),
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
  if (isOn) reveal($("source-view"));
});
$("brush-clear").addEventListener("click", () => brush.clear());

// The grid.

function listAxes(words) {
  const ofWords = api.isStatic ? [] : named(words).map((text) => [`weight:${text}`, `weight of “${text}”`]);
  const options = [["cross", "layout: cross τ"], ["self", "shapes: self τ"], ...ofWords];
  for (const [id, fallback] of [["x-name", "cross"], ["y-name", "self"]]) {
    const former = $(id).value;
    $(id).replaceChildren(...options.map(([value, text]) => el("option", { value }, text)));
    $(id).value = options.some(([value]) => value === former) ? former : fallback;
  }
}

const numbers = (id) => $(id).value.split(/[,;\s]+/).filter(Boolean).map(Number);

for (const id of ["x-values", "y-values"]) {
  $(id).addEventListener("input", () => {
    const values = numbers(id);
    $(id).setCustomValidity(values.length && values.every(Number.isFinite) ? "" : "Numbers with commas between them, as in 0, 0.4, 0.8.");
  });
}

$("form-grid").addEventListener("submit", async (event) => {
  event.preventDefault();
  const axes = { x: { name: $("x-name").value, values: numbers("x-values") }, y: { name: $("y-name").value, values: numbers("y-values") } };
  if (axes.x.name === axes.y.name) {
    alert("The grid shows two different settings: choose another one for across or down.");
    return;
  }
  const computed = api.isStatic ? api.example.edits : {};
  const missing = Object.values(axes).find(({ name, values }) => computed[name] && !values.every((value) => computed[name].includes(value)));
  alert(missing ? `These examples have ${missing.name} τ ${computed[missing.name].join(", ")}: choose among them.` : "");
  if (missing) return;
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
  const body = { ...editFields(), paste: $("paste").checked, ...axes };
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
  running.edit?.abort();
  showEdit({ run }).then(() => reveal($("edit-view")));
}

// A page that is left and opened again, by "back" or a reload, has its forms, and the runs that the server still has.

const REMEMBERED = ["prompt", "seed", "steps", "guidance", "photo-prompt"];

addEventListener("pagehide", () => {
  if (!api.isStatic) stored("sessionStorage", "minip2p-form", JSON.stringify(Object.fromEntries(REMEMBERED.map((id) => [id, $(id).value]))));
});

async function recall() {
  const values = JSON.parse(stored("sessionStorage", "minip2p-form") ?? "{}");
  for (const id of REMEMBERED) if (values[id] !== undefined) setValue($(id), values[id]);
  const { source, edit: edited } = history.state ?? {};
  const [first, last] = await Promise.all([source, edited].map((id) => id && api.run(id).catch(() => null)));
  if (!first || views.source.run || running.source) return;
  useAsSource(first.run);
  if (!last) return;
  const lost = await useEditSettings(last.settings);
  if (views.source.run !== first.run || !views.edit.isEmpty || running.edit) return;
  showEdit(last);
  tellLost(lost ?? []);
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
    const text = $(button.dataset.copy);
    try {
      await navigator.clipboard.writeText(text.textContent);
      button.textContent = "Copied";
    } catch { // a page of another computer's server has no clipboard
      getSelection().selectAllChildren(text);
      button.textContent = "Selected: copy it by Ctrl+C";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
}

function setValue(input, value) {
  input.value = value;
  showValue(input);
}

/** Writes the number of a slider beside it. */
function showValue(input) {
  const output = document.querySelector(`output[for="${input.id}"]`);
  if (output) output.textContent = input.value;
}

addEventListener("input", (event) => showValue(event.target));

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
    for (const id of ["cross", "self"]) { // which stop at the values that were computed, as far from each other
      const values = api.data.examples[0].edits[id];
      Object.assign($(id), { max: values.at(-1), step: values[1] - values[0] });
    }
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
