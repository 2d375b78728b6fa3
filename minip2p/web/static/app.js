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

/** action: the text of a button beside the message, and what it does. */
function alert(message, action = null) {
  $("alert").replaceChildren(message, ...(action ? [el("button", { type: "button", onclick: () => { alert(""); action[1](); } }, action[0])] : []));
  $("alert").hidden = !message;
}

/** Tells what went wrong. isEdit: with an edit that was asked for. */
function fail(error, isEdit = !views.edit.isEmpty) {
  if (error.status === 404 && views.source.run) tellForgotten({ origin: views.source.run.origin, form: { ...editFields(), paste: $("paste").checked }, isEdit });
  else alert(error.message);
}

const isKnown = (word) => !model.words || model.words.includes(word.toLowerCase());

const brush = new Brush($("brush-size"), { ondraw: () => scheduleEdit(), onchange: (isEmpty) => {
  $("brush-clear").hidden = isEmpty;
  summarize();
} });
const objects = new Objects($("objects"), {
  onchange: () => scheduleEdit(true), onlist: () => summarize(),
  onsee: () => reveal($("edit-progress"), "start"),
  find: async (list) => (await runJob("places", "places", { ...await currentEdit(), objects: list }))?.places,
});
const views = Object.fromEntries([["source", "Picture"], ["edit", "Edited picture"]].map(([name, label]) => [
  name, new RunView($(`${name}-view`), {
    api, label, fail, isKnown, recipe: showRecipe, actions: name === "edit" && !api.isStatic ? { "Edit this picture": useAsSource } : {},
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
    if (error.name !== "AbortError" && !control.signal.aborted) {
      if (kind === "invert" && error.status === 404) tellPhotoForgotten();
      else fail(error, kind === "edit" || !views.edit.isEmpty);
    }
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
  if (!result) return null;
  result.run.origin = { kind: "generate", body };
  useAsSource(result.run);
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

/** -> whether the server has taken it. */
async function takePhoto(file) {
  alert("");
  try {
    photo = { ...await api.photo(file), file };
  } catch (error) {
    alert(error.message);
    return false;
  }
  $("photo-preview").src = photo.picture;
  $("photo-preview").alt = `The photograph, ${photo.size[1]} × ${photo.size[0]} pixels`;
  $("photo-preview").hidden = false;
  $("photo-notes").textContent = [file.name, ...photo.notes].join(" · ");
  chooseTab("photo");
  $("photo-prompt").focus();
  return true;
}

$("file").addEventListener("change", async () => {
  const [file] = $("file").files;
  if (!file) return;
  await takePhoto(file);
  $("file").value = ""; // so that the same file can be chosen again
});
addEventListener("pageshow", () => { $("file").value = ""; });

let usualSteps = null; // while a method is chosen that takes few

$("method").addEventListener("change", () => {
  const isVirtual = $("method").value === "virtual";
  const steps = isVirtual ? model.defaults.few_steps : usualSteps;
  usualSteps = isVirtual ? $("photo-steps").value : null;
  if (steps !== null) setValue($("photo-steps"), steps);
});

$("form-invert").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (!photo) {
    alert("Choose a photograph first.");
    return;
  }
  const body = { photo: photo.photo, prompt: $("photo-prompt").value, method: $("method").value, steps: Number($("photo-steps").value), preview: false };
  const { file } = photo;
  const result = await runJob("source", "invert", body);
  if (!result) return;
  result.run.origin = { kind: "invert", body, file };
  useAsSource(result.run);
});

// What the server has forgotten: pictures can be made again from what the page knows of them.

const FORGOTTEN = "The server was started again, or has made many pictures since";

function tellPhotoForgotten() {
  alert(`${FORGOTTEN}, and no longer has this photograph.`, ["Upload it again", async () => {
    if (await takePhoto(photo.file)) $("form-invert").requestSubmit();
  }]);
}

/** What a person has to do before a picture can be made again; nothing, mostly. */
function missing(origin) {
  if (!origin) return "generate a picture again";
  if (origin.kind === "edit") return missing(origin.of);
  return origin.kind === "invert" && !origin.file ? "choose the photograph again" : "";
}

/**
 * origin: how the picture was made: the kind and the body of its request, the file of a photograph, and `of`, the origin of
 * the picture that it is an edit of. form: the edit as it stands, or null. isEdit: whether it was made or asked for.
 */
function tellForgotten({ origin, form, isEdit }) {
  if (missing(origin)) alert(`${FORGOTTEN}, and no longer has this one: ${missing(origin)}.`);
  else alert(`${FORGOTTEN}, and no longer has this one.`, ["Make it again", () => makeAgain({ origin, form, isEdit })]);
}

async function makeAgain({ origin, form, isEdit }) {
  const isThere = views.source.run && await api.run(views.source.run.id).then(() => true, () => false);
  if (!isThere) {
    const run = await makeRun(origin);
    if (!run) return;
    useAsSource(run);
    if (!form || !await useForm(form)) return;
  }
  if (isEdit) edit();
}

/** Brings an edit back as it stood. -> whether its objects have places. */
async function useForm(form) {
  brush.restore(form.region);
  return Boolean(await useEditSettings({ ...form, prompt: form.target, threshold: null, region: false }));
}

/** The run of an origin, as a new one; null if it cannot be made. */
async function makeRun({ kind, body, file, of }) {
  const now = { ...body };
  if (file) {
    try {
      now.photo = (await api.photo(file)).photo;
    } catch (error) {
      alert(error.message);
      return null;
    }
  }
  if (of) {
    const source = await makeRun(of);
    if (!source) return null;
    now.run = source.id;
  }
  const result = await runJob("source", kind, now, { onEvent: withPreview(views.source) });
  return result && Object.assign(result.run, { origin: { kind, body: now, file, of } });
}

addEventListener("error", async ({ target }) => { // pictures that do not come
  if (!api.isStatic && target instanceof HTMLImageElement && target.src.includes("/api/")) await api.check(target.src).catch((error) => fail(error));
}, true);

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

/** What a page that is left and opened again finds: the runs, and how they were made. The file of a photograph stays behind. */
function remember(edited = null) {
  const { id, origin } = views.source.run;
  const state = { source: id, origin, edit: edited?.id, form: edited && { ...editFields(), paste: $("paste").checked } };
  history.replaceState(JSON.parse(JSON.stringify(state, (name, value) => (name === "file" ? undefined : value))), "");
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
    remember();
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

/** The fields of an edit of the prompt as it is now: its words may be too new to be listed yet. */
async function currentEdit() {
  if (described !== `${views.source.run.prompt}\n${$("target").value}`) await describeTargetNow();
  return editFields();
}

/** -> whether the edit was made. */
async function edit(isAsked = true) {
  if (!views.source.run) return false;
  if (!$("target").value.trim()) {
    alert("Write the new prompt first.");
    return false;
  }
  const source = views.source.run;
  const body = { ...await currentEdit(), paste: $("paste").checked, compare: $("compare").checked, preview: true };
  if (source !== views.source.run) return false;
  isBehind = false;
  const result = await runJob("edit", "edit", body, { onEvent: views.edit.isEmpty ? withPreview(views.edit) : previewInPlace, isAsked });
  if (!result) {
    if (!running.edit) document.querySelector("#edit-view .comparison")?.restore();
    return false;
  }
  objects.locate(result.places ?? {});
  result.run.origin = { kind: "edit", body: { ...body, compare: false }, of: source.origin };
  if (isBehind && !views.edit.isEmpty) previewInPlace({ preview: result.run.picture });
  else await showEdit(result);
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
  remember(run);
  views.edit.show(run);
  $("edit-view").prepend(comparison(api, { run, source, plain }));
}

/** Is called when a setting of the edit has changed. */
function changed() {
  summarize();
  scheduleEdit();
}

const isExpected = (isWanted) => isWanted === true || running.edit || !views.edit.isEmpty;
const editSoon = debounce((isWanted) => isExpected(isWanted) && edit(false), 120);

/** isWanted: also where no edit is shown or on its way yet. */
function scheduleEdit(isWanted) {
  const { method, steps } = views.source.run ?? {};
  if (method !== "virtual" || steps > model.defaults.few_steps) editSoon(isWanted);
  else if (isExpected(isWanted)) followEdit();
}

let isBehind = false; // whether a setting has changed since the last edit began
let isFollowing = false;

/** Edits in few steps follow a slider while it is dragged: each is done, and the next begins with the last position. */
async function followEdit() {
  isBehind = true;
  if (isFollowing) return;
  isFollowing = true;
  try {
    while (isBehind && await edit(false));
  } finally {
    isFollowing = false;
  }
}

let described = ""; // the prompts whose words are listed

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
  described = `${source.prompt}\n${target}`;
  drawAlignment($("alignment"), alignment);
  listWeights(alignment.target);
  listBlendWords(alignment);
  listAxes(alignment.target);
  summarize();
}

const describeTarget = debounce(describeTargetNow, 150);

function listWeights(words) {
  const former = new Map(weights);
  weights.clear();
  const names = named(words);
  $("weight-fields").replaceChildren(...words.map(({ index }, n) => {
    const text = names[n];
    const id = `weight-${index}`;
    const slider = el("input", { id, type: "range", min: -4, max: 8, step: 0.25, value: former.get(text)?.value ?? 1, oninput: changed });
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
          changed();
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
for (const id of ["paste", "compare"]) $(id).addEventListener("change", changed);

function turnBrush(isOn) {
  $("brush").setAttribute("aria-pressed", String(isOn));
  views.source.isBrushing = isOn;
  $("source-view").classList.toggle("brushing", isOn);
  if (isOn) views.source.quiet();
  if (isOn) reveal($("source-view"));
  $("brush-keys").hidden = !isOn;
  brush.turn(isOn);
}

$("brush").addEventListener("click", () => turnBrush(!brush.isOn));
$("limits").addEventListener("toggle", () => $("limits").open || turnBrush(false));
$("brush-clear").addEventListener("click", () => {
  brush.clear();
  $("brush").focus();
});

// Panels: what is set in them is in force also while they are closed, so their titles say what it is.

const PANELS = {
  weights: {
    set: () => [...weights].filter(([, slider]) => Number(slider.value) !== 1).map(([word, slider]) => `${word} ${slider.value}`),
    reset: () => weights.forEach((slider) => setValue(slider, 1)),
  },
  objects: {
    set: () => objects.list.map(({ word }) => word),
    reset: () => objects.clear(),
  },
  limits: {
    set: () => [...new Set([...blend.source, ...blend.target]), ...(brush.isEmpty ? [] : ["a region"]), ...($("paste").checked ? ["original pixels"] : [])],
    reset: () => {
      for (const side of ["source", "target"]) blend[side].clear();
      for (const button of $("blend-words").children) button.setAttribute("aria-pressed", "false");
      $("paste").checked = false;
      brush.clear(false);
    },
  },
};

/** Writes into the titles of the panels what is set in them. */
function summarize() {
  for (const [id, { set }] of Object.entries(PANELS)) {
    const panel = $(id).closest(".panel");
    panel.querySelector(".set").textContent = set().join(", ");
    panel.querySelector(".reset").hidden = !set().length;
  }
}

for (const [id, { reset }] of Object.entries(PANELS)) {
  $(id).closest(".panel").querySelector(".reset").addEventListener("click", () => {
    reset();
    changed();
    $(id).querySelector("summary").focus();
    announce("reset");
  });
}

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

/** The fields of an edit with another value on an axis of the grid. */
function withValue(fields, name, value) {
  return name.startsWith("weight:") ? { ...fields, weights: { ...fields.weights, [name.slice(7)]: value } } : { ...fields, [name]: value };
}

$("form-grid").addEventListener("submit", async (event) => {
  event.preventDefault();
  const source = views.source.run;
  const fields = { ...await currentEdit(), paste: $("paste").checked };
  if (source !== views.source.run) return;
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
    run.origin = { kind: "edit", body: withValue(withValue(fields, axes.x.name, axes.x.values[x]), axes.y.name, axes.y.values[y]), of: source.origin };
    cells.get(`${x},${y}`).replaceChildren(el("button", { type: "button", "aria-pressed": "false", onclick: (click) => {
        table.querySelectorAll("button").forEach((button) => button.setAttribute("aria-pressed", String(button === click.currentTarget)));
        openCell(axes, x, y, run);
      } },
      el("img", { src: run.picture, alt: `${axes.x.name} ${axes.x.values[x]}, ${axes.y.name} ${axes.y.values[y]}` })));
  };
  if (api.isStatic) {
    for (const [j, y] of axes.y.values.entries()) {
      for (const [i, x] of axes.x.values.entries()) {
        for await (const { run } of api.job("edit", { ...fields, [axes.x.name]: x, [axes.y.name]: y })) onEvent({ type: "cell", x: i, y: j, run });
      }
    }
    return;
  }
  await runJob("grid", "grid", { ...fields, ...axes }, { onEvent });
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
  const { source, origin, edit: edited, form } = history.state ?? {};
  const [first, last] = await Promise.all([source, edited].map((id) => id && api.run(id).catch(() => null)));
  if (views.source.run || running.source || !source) return;
  if (!first) {
    tellForgotten({ origin, form, isEdit: Boolean(edited) });
    return;
  }
  first.run.origin = origin;
  useAsSource(first.run);
  if (!edited || !form) return;
  await useForm(form);
  if (views.source.run !== first.run || !views.edit.isEmpty || running.edit) return;
  if (last) showEdit({ run: { ...last.run, origin: { kind: "edit", body: form, of: origin } } });
  else tellForgotten({ origin, form, isEdit: true });
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
    fail(error);
  }
}

addEventListener("click", async (event) => { // files, of which a link alone would not say why there is none
  const link = event.target.closest?.("a[download]");
  if (!link || api.isStatic || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  if (link.ariaBusy === "true") return;
  link.ariaBusy = "true"; // an animation takes a while
  try {
    const href = URL.createObjectURL(await (await api.check(link.href)).blob());
    el("a", { href, download: link.download }).click();
    setTimeout(() => URL.revokeObjectURL(href), 60_000);
  } catch (error) {
    $("recipe").close();
    fail(error);
  } finally {
    link.ariaBusy = null;
  }
});

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
