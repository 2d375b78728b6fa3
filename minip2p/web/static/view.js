// A run on the page: its picture, the words of its prompt, and where they look.

import { announce, el, percent } from "./dom.js";
import { GRADIENT, drawHeat } from "./heat.js";
import { Maps } from "./maps.js";

const SPECIAL = ["start", "end", "padding"];

/** A file name for a run: its prompt, as the command line makes them. */
function fileName(run, name) {
  const stem = run.prompt.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 60) || "picture";
  return `${stem}${run.seed === null ? "" : `-seed${run.seed}`}.${name.split(".").at(-1)}`;
}

export class RunView {
  /**
   * container: an element to fill. label: what the picture is called. actions: further buttons, label -> function.
   * fail: is told an error. isKnown: whether the model was trained with a word. onbuild: is called when the picture is there.
   */
  constructor(container, { api, label, actions = {}, recipe, fail, isKnown = () => true, onbuild = () => {} }) {
    Object.assign(this, { container, api, label, actions, recipe, fail, isKnown, onbuild });
  }

  get isEmpty() { return !this.run; }

  clear() {
    this.run = null;
    this.maps = null;
    this.loading?.abort();
    this.container.replaceChildren();
  }

  /** A picture that is still being made, where the finished one will be. */
  preview(url) {
    if (this.drafting) {
      this.drafting.src = url;
      return;
    }
    this.drafting = el("img", { src: url, alt: "The picture so far" });
    this.container.replaceChildren(el("div", { className: "look" },
      el("div", { className: "left" }, el("div", { className: "picture" }, this.drafting), el("p", { className: "legend" }))));
  }

  /** Ends a preview whose run was cancelled or failed: what was there before comes back. */
  restore() {
    if (!this.drafting) return;
    this.drafting = null;
    if (this.run) this.show(this.run);
    else this.clear();
  }

  async show(run) {
    this.loading?.abort();
    Object.assign(this, { run, maps: null, selection: null, drafting: null });
    this.hovered = null; // the token under the pointer
    this.pinned = null; // the token whose map stays
    this.place = null; // the cell under the pointer or the keyboard's cursor
    this.looking = null; // the place whose self-attention is shown
    this.build();
    const loading = this.loading = new AbortController();
    try {
      const maps = new Maps(await this.api.maps(run, loading.signal));
      if (this.run !== run) return;
      this.maps = maps;
      this.choices();
    } catch (error) {
      if (error.name !== "AbortError") this.fail(error);
    }
  }

  build() {
    const { run } = this;
    this.image = el("img", { src: run.picture, alt: `${this.label}: ${run.prompt}`, draggable: false });
    this.heat = el("canvas", { className: "heat", hidden: true, "aria-hidden": "true" });
    this.marker = el("span", { className: "marker", hidden: true });
    this.mark = el("span", { className: "marker chosen", hidden: true });
    this.picture = el("div", {
      className: "picture", tabIndex: 0, role: "group",
      "aria-label": `${this.label}. Arrow keys move over the picture and list the words by their attention; Enter shows what a place looks at.`,
      onpointermove: (event) => this.point(event), onpointerleave: () => this.unpoint(),
      onclick: (event) => { this.point(event); this.look(); }, onkeydown: (event) => this.key(event), onblur: () => this.unpoint(),
    }, this.image, this.heat, this.mark, this.marker);
    this.legend = el("p", { className: "legend" });
    this.words = el("div", { className: "words", role: "group", "aria-label": "Words: hover or focus one to see where it looks" });
    this.specials = el("div", { className: "words" });
    this.inspector = el("div", { className: "inspector" });
    this.ranks = el("ol", { className: "ranks", "aria-label": "Words by their share of attention at this place" });
    const facts = [run.seed === null ? null : `seed ${run.seed}`, run.steps === 1 ? "1 step" : `${run.steps} steps`, `guidance ${run.guidance}`, run.method,
      run.psnr === null || run.psnr === undefined ? null : `reconstruction ${run.psnr.toFixed(1)} dB`,
      run.rows ? `${run.seconds.toFixed(1)} s, ${run.rows} rows of the UNet` : null];
    const home = el("p", { className: "home" },
      ...this.api.links(run).map(([text, href, name]) => el("a", { href, download: fileName(run, name) }, text)),
      el("button", { type: "button", onclick: () => this.recipe(run) }, "Code"),
      ...Object.entries(this.actions).map(([text, action]) => el("button", { type: "button", onclick: () => action(run) }, text)));
    this.container.replaceChildren(
      el("div", { className: "look" },
        el("div", { className: "left" }, this.picture, this.legend),
        el("div", { className: "right" }, this.words, this.inspector, this.ranks)),
      el("p", { className: "facts" }, facts.filter(Boolean).join(" · ")),
      ...(run.notes || []).map((note) => el("p", { className: "facts note" }, note)), home);
    if (run.original) this.photographOf(run);
    this.words.append(...run.words.map((word) => el("button", {
      type: "button", className: `word${this.isKnown(word.text) ? "" : " unknown"}`, disabled: true,
    }, word.text)));
    this.onbuild(this);
  }

  photographOf(run) {
    const swap = el("button", {
      type: "button", "aria-pressed": "false",
      onclick: () => {
        const isOriginal = swap.getAttribute("aria-pressed") === "false";
        swap.setAttribute("aria-pressed", String(isOriginal));
        this.image.src = isOriginal ? run.original : run.picture;
      },
    }, "Show the photograph itself");
    this.container.querySelector(".left").append(el("p", { className: "home" }, swap));
  }

  choices() {
    const { maps } = this;
    const layer = el("select", { id: this.id("layer"), onchange: () => this.reselect() });
    const groups = new Map();
    for (const [value, text, group] of maps.layers()) {
      if (!groups.has(group)) groups.set(group, layer.appendChild(el("optgroup", { label: group })));
      groups.get(group).append(el("option", { value }, text));
    }
    const head = el("select", { id: this.id("head"), onchange: () => this.reselect() }, el("option", { value: "" }, "mean of all"),
      ...Array.from({ length: maps.heads > 1 ? maps.heads : 0 }, (_, n) => el("option", { value: n }, `head ${n}`)));
    const name = el("output", {}, "all");
    const step = el("input", {
      id: this.id("step"), type: "range", min: 0, max: maps.steps > 1 ? maps.steps : 0, value: 0, disabled: maps.steps < 2,
      oninput: () => {
        name.value = step.value === "0" ? "all" : `${step.value} of ${maps.steps}`;
        this.reselect();
      },
    });
    step.setAttribute("aria-valuetext", "all");
    step.addEventListener("input", () => step.setAttribute("aria-valuetext", name.value));
    const special = el("input", { type: "checkbox", onchange: () => this.listWords() });
    this.controls = { layer, head, step, special };
    const field = (text, control, ...more) => el("div", {}, el("label", { htmlFor: control.id }, text, ...more), control);
    this.inspector.replaceChildren(
      field("Layer", layer), field("Head", head), field("Step ", step, name),
      el("label", { className: "check" }, special, " start, end and padding"), this.specials);
    this.listWords();
    this.reselect();
  }

  id(name) { return `${this.container.id}-${name}`; }

  reselect() {
    const { layer, head, step } = this.controls;
    this.selection = this.maps.select({
      layer: layer.value, head: head.value === "" ? null : Number(head.value), step: step.value === "0" ? null : Number(step.value) - 1,
    });
    this.redraw();
  }

  listWords() {
    const button = ([token, j]) => {
      const isUnknown = token.kind === "word" && !this.isKnown(token.text);
      return el("button", {
        type: "button", className: `word ${token.kind}${isUnknown ? " unknown" : ""}`, value: j,
        title: isUnknown ? "the model was trained without this word" : "", "aria-pressed": "false",
        onpointerenter: () => this.hover(j), onpointerleave: () => this.hover(null), onfocus: () => this.hover(j), onblur: () => this.hover(null),
        onclick: () => this.pin(j),
      }, token.text);
    };
    const tokens = this.maps.tokens.map((token, j) => [token, j]);
    this.words.replaceChildren(...tokens.filter(([{ kind }]) => kind === "word").map(button));
    this.specials.replaceChildren(...tokens.filter(([{ kind }]) => this.controls.special.checked && SPECIAL.includes(kind)).map(button));
    if (!this.controls.special.checked && SPECIAL.includes(this.maps.tokens[this.pinned]?.kind)) this.pinned = null;
    this.press();
  }

  pin(j) {
    this.pinned = this.pinned === j ? null : j;
    this.looking = null;
    this.press();
  }

  press() {
    for (const button of [...this.words.children, ...this.specials.children]) button.setAttribute("aria-pressed", String(button.value === String(this.pinned)));
    this.redraw();
  }

  hover(j) {
    this.hovered = j;
    this.redraw();
  }

  redraw() {
    const token = this.hovered ?? (this.looking ? null : this.pinned);
    if (token !== null && this.selection) {
      const values = this.maps.token(this.selection, token);
      this.overlay({ ...this.selection, values }, (top) => `“${this.maps.tokens[token].text}”: brightest where a place gives it ${percent(top)} of its attention`);
    } else if (this.looking) {
      this.overlay(this.maps.lookFrom(...this.looking, this.controls.layer.value),
        (top) => `What the marked place looks at (mean of heads and steps): brightest ${percent(top)} of its attention`);
    } else {
      this.heat.hidden = true;
      this.legend.replaceChildren();
      this.picture.classList.remove("dimmed");
    }
    this.rank();
  }

  /** Shows no map, as for drawing on the picture. */
  quiet() {
    this.pinned = this.looking = this.place = null;
    this.press();
  }

  overlay(map, describe) {
    const top = map.values.reduce((a, b) => Math.max(a, b), 1e-6);
    drawHeat(this.heat, map, top);
    this.heat.hidden = false;
    this.picture.classList.add("dimmed");
    const bar = el("span", { className: "bar" });
    bar.style.backgroundImage = GRADIENT;
    this.legend.replaceChildren("0 ", bar, ` ${percent(top)}  `, el("span", {}, describe(top)));
  }

  point(event) {
    const box = this.image.getBoundingClientRect();
    const clamp = (value) => Math.min(0.9999, Math.max(0, value));
    this.moveTo([clamp((event.clientX - box.left) / box.width), clamp((event.clientY - box.top) / box.height)]);
  }

  moveTo(place) {
    if (this.isBrushing) return;
    this.place = place;
    this.rank();
  }

  unpoint() {
    this.place = null;
    this.rank();
  }

  look() {
    if (!this.maps || !this.maps.self.length || !this.place || this.isBrushing) return;
    const cell = ([u, v]) => [Math.floor(u * 16), Math.floor(v * 16)].join();
    this.looking = this.looking && cell(this.looking) === cell(this.place) ? null : this.place;
    this.redraw();
  }

  key(event) {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.target !== this.picture || !this.selection) return;
    const { rows, columns } = this.selection;
    if (moves[event.key]) {
      const [dx, dy] = moves[event.key];
      const clamp = (value) => Math.min(0.9999, Math.max(0, value));
      const [u, v] = this.place || [0.5, 0.5];
      this.moveTo([clamp((Math.floor(u * columns) + 0.5 + dx) / columns), clamp((Math.floor(v * rows) + 0.5 + dy) / rows)]);
      announce([...this.ranks.children].slice(0, 3).map((item) => [...item.children].map((part) => part.textContent).join(" ")).join(", "));
    } else if (event.key === "Enter" || event.key === " ") {
      this.place ||= [0.5, 0.5];
      this.look();
      this.rank();
    } else if (event.key === "Escape") {
      this.quiet();
    } else {
      return;
    }
    event.preventDefault();
  }

  /** The words by their attention at the place under the pointer, or else at the marked place. */
  rank() {
    const place = this.place || this.looking;
    this.marker.hidden = !this.place || !this.selection;
    this.mark.hidden = !this.looking || !this.selection;
    if (!this.selection) return;
    if (this.place) this.frame(this.marker, this.place);
    if (this.looking) this.frame(this.mark, this.looking);
    if (!place) {
      this.ranks.replaceChildren(el("li", { className: "hint" }, "Point at the picture: the words by their attention there. Click: what the place looks at."));
      return;
    }
    const ranking = this.maps.ranking(this.selection, ...place);
    const listed = ranking.filter(([token]) => token.kind === "word" || token.kind === "punctuation" || this.controls.special.checked);
    const rest = ranking.filter((entry) => !listed.includes(entry)).reduce((sum, [, share]) => sum + share, 0);
    this.ranks.replaceChildren(...listed.slice(0, 10).map(([token, share]) => {
      const bar = el("span", { className: "bar" });
      bar.style.width = `${100 * share}%`;
      return el("li", {}, el("span", { className: "name" }, token.text), bar, el("span", { className: "share" }, percent(share)));
    }), ...(rest > 0 ? [el("li", { className: "hint" }, `start, end and padding: ${percent(rest)}`)] : []));
  }

  frame(marker, [u, v]) {
    const { rows, columns } = this.selection;
    Object.assign(marker.style, {
      left: `${100 * Math.floor(u * columns) / columns}%`, top: `${100 * Math.floor(v * rows) / rows}%`,
      width: `${100 / columns}%`, height: `${100 / rows}%`,
    });
  }
}
