// Objects of the picture: their places over it, where they are dragged, and a row of numbers and buttons for each.

import { announce, el, reveal, svg } from "./dom.js";

let count = 0; // of clip paths, which need ids
const KINDS = ["move", "duplicate", "remove"]; // from back to front, as the edit has them
const SHIFTS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const SIZES = { "+": 0.05, "=": 0.05, "-": -0.05 };
const LIMITS = { x: [-10000, 10000], y: [-10000, 10000], scale: [0.1, 10] };
const bound = (name, value) => Math.max(LIMITS[name][0], Math.min(LIMITS[name][1], value));

/** The border of a place, pixel by pixel, as a path: each point is the mean of the five around it, so steps are smooth. */
function curve(line) {
  const mean = (n, axis) => [-2, -1, 0, 1, 2].reduce((sum, k) => sum + line.at((n + k) % line.length)[axis], 0) / 5;
  return `M${line.map((_, n) => `${mean(n, 0).toFixed(2)},${mean(n, 1).toFixed(2)}`).join("L")}z`;
}

class PictureObject {
  /** run: whose picture shows it. place: as the server tells it. tell: is called with what has happened, for the list to react. */
  constructor(word, run, place, tell) {
    Object.assign(this, { word, run, tell, kind: "move", x: 0, y: 0, scale: 1 });
    this.hole = svg("path", { class: "hole" });
    this.border = svg("path", { class: "border" });
    this.casing = svg("path", { class: "casing" });
    this.clip = svg("path");
    const clip = svg("clipPath", { id: `place-${count++}` }, this.clip);
    const [height, width] = run.size;
    this.ghost = svg("image", { href: run.picture, width, height, preserveAspectRatio: "none", "clip-path": `url(#${clip.id})` });
    this.body = svg("g", {}, clip, this.ghost, this.casing, this.border);
    this.handle = svg("g", { class: "handle" }, svg("circle", { class: "reach", r: width / 18 }), svg("circle", { r: width / 60 }));
    this.shape = svg("g", { class: "object", tabindex: 0, role: "application", "aria-describedby": "objects-keys" }, this.body, this.handle);
    this.shape.addEventListener("keydown", (event) => this.key(event));
    for (const type of ["pointermove", "click"]) this.shape.addEventListener(type, (event) => event.stopPropagation()); // not for the maps
    this.body.addEventListener("pointerdown", (event) => this.drag(event, ([x, y], [x0, y0], from) => ({
      x: Math.round(from.x + x - x0), y: Math.round(from.y + y - y0),
    })));
    this.handle.addEventListener("pointerdown", (event) => this.drag(event, (to, start, from) => {
      const reach = ([x, y]) => Math.hypot(x - this.centre[0] - from.x, y - this.centre[1] - from.y);
      return { scale: Math.round(100 * from.scale * reach(to) / reach(start)) / 100 };
    }));
    this.build();
    this.locate(place);
  }

  build() {
    const field = (name, text, step) => {
      const [min, max] = LIMITS[name];
      const isValid = () => input.valueAsNumber >= min && input.valueAsNumber <= max;
      const input = el("input", { type: "number", min, max, step, oninput: () => isValid() && this.change({ [name]: input.valueAsNumber }), onchange: () => {
        if (isValid()) return;
        if (input.value) this.change({ [name]: bound(name, input.valueAsNumber) });
        input.value = this[name];
        this.note.textContent = `“${text}” is a number from ${min} to ${max}: it is ${this[name]} now`;
      } });
      this.fields[name] = input;
      return el("label", {}, text, input);
    };
    const button = (text, act) => el("button", { type: "button", onclick: ({ currentTarget }) => currentTarget.ariaDisabled !== "true" && act() }, text);
    const toggle = (kind) => () => this.become(this.kind === kind ? "move" : kind);
    this.fields = {};
    const numbers = [field("x", "right", "any"), field("y", "down", "any"), field("scale", "size", 0.01)];
    this.note = el("span", { className: "note", role: "status" });
    this.buttons = {
      duplicate: button("Duplicate", toggle("duplicate")), remove: button("Remove", toggle("remove")),
      front: button("To the front", () => this.tell(this, "front")), back: button("Put back", () => this.putBack()),
    };
    this.row = el("div", { className: "chips", role: "group", "aria-label": this.word }, el("b", {}, this.word), ...numbers, this.note,
      el("div", { className: "chips" }, ...Object.values(this.buttons)));
  }

  /** The place of the word, which the settings of an edit change a little. */
  locate({ centre, outline }) {
    this.centre = centre;
    const border = outline.map(curve).join("");
    for (const path of [this.hole, this.border, this.casing, this.clip]) path.setAttribute("d", border);
    const corners = outline.flat();
    this.corner = corners.reduce((best, corner) => (corner[0] + corner[1] > best[0] + best[1] ? corner : best));
    this.draw();
  }

  get isStill() { return this.kind === "move" && !this.x && !this.y && this.scale === 1; }

  get request() {
    const { word, kind, x, y, scale } = this;
    return kind === "remove" ? { word, kind } : { word, kind, x, y, scale };
  }

  /** What happens to it, in words. */
  get state() {
    const { word, kind, x, y, scale } = this;
    if (kind === "remove") return `${word}: removed`;
    if (this.isStill) return `${word}: in its place`;
    const shift = `${Math.abs(x)} ${x < 0 ? "left" : "right"}, ${Math.abs(y)} ${y < 0 ? "up" : "down"}`;
    return `${word}: ${kind === "move" ? "" : "a second time, "}${shift}${scale === 1 ? "" : `, size ${scale}`}`;
  }

  draw() {
    const { x, y, scale, kind, centre: [cx, cy], corner } = this;
    const isRemoved = kind === "remove";
    const [height, width] = this.run.size;
    const within = (value, side) => Math.max(0, Math.min(side, value));
    this.shape.setAttribute("aria-label", this.state);
    this.shape.classList.toggle("removed", isRemoved);
    this.shape.classList.toggle("still", this.isStill);
    this.handle.toggleAttribute("hidden", isRemoved);
    this.hole.toggleAttribute("hidden", this.isStill || kind === "duplicate");
    this.body.setAttribute("transform", isRemoved ? "" : `translate(${cx + x} ${cy + y}) scale(${scale}) translate(${-cx} ${-cy})`);
    this.handle.setAttribute("transform", `translate(${within(cx + x + scale * (corner[0] - cx), width)} ${within(cy + y + scale * (corner[1] - cy), height)})`);
    for (const [name, input] of Object.entries(this.fields)) {
      if (input !== document.activeElement) input.value = this[name];
      input.disabled = isRemoved;
    }
    for (const name of ["duplicate", "remove"]) this.buttons[name].setAttribute("aria-pressed", String(kind === name));
    this.buttons.back.setAttribute("aria-disabled", String(this.isStill));
  }

  /** The values with a shift at which the object's centre stays in the picture. */
  inside({ x = this.x, y = this.y, ...others }) {
    const within = (value, centre, side) => Math.max(Math.ceil(-centre), Math.min(Math.floor(side - centre), value));
    return { x: within(x, this.centre[0], this.run.size[1]), y: within(y, this.centre[1], this.run.size[0]), ...others };
  }

  set(values) {
    for (const [name, value] of Object.entries(values)) this[name] = name in LIMITS ? bound(name, value) : value;
    this.note.textContent = "";
    this.draw();
  }

  change(values) {
    this.set(values);
    this.tell(this, "change");
  }

  become(kind) {
    if (kind === "duplicate" && !this.x && !this.y) this.x = (this.centre[0] < this.run.size[1] / 2 ? 1 : -1) * Math.round(this.run.size[1] / 3);
    this.change({ kind });
  }

  putBack() { this.change({ kind: "move", x: 0, y: 0, scale: 1 }); }

  /** follow: the values from where the pointer is, where it was at first, and the values then. Positions are in pixels of the picture. */
  drag(event, follow) {
    if (event.button || this.kind === "remove") return;
    event.preventDefault();
    event.stopPropagation();
    this.shape.focus({ preventScroll: true });
    const at = ({ clientX, clientY }) => {
      const box = this.shape.ownerSVGElement.getBoundingClientRect();
      return [(clientX - box.left) * this.run.size[1] / box.width, (clientY - box.top) * this.run.size[0] / box.height];
    };
    const { x, y, scale } = this;
    const start = at(event);
    const control = new AbortController();
    const listen = (target, type, listener) => target.addEventListener(type, listener, { signal: control.signal });
    const end = (isDone) => {
      control.abort();
      if (!isDone) this.set({ x, y, scale });
      else if (x !== this.x || y !== this.y || scale !== this.scale) this.tell(this, "change");
    };
    this.shape.setPointerCapture(event.pointerId);
    listen(this.shape, "pointermove", (now) => this.set(this.inside(follow(at(now), start, { x, y, scale }))));
    listen(this.shape, "pointerup", () => end(true));
    listen(this.shape, "pointercancel", () => end(false));
    listen(this.shape, "keydown", (pressed) => pressed.key === "Escape" && end(false));
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const shift = SHIFTS[event.key];
    if (event.key === "Delete" || event.key === "Backspace") this.become("remove");
    else if (this.kind === "remove") return;
    else if (shift) this.change(this.inside({ x: this.x + shift[0] * (event.shiftKey ? 8 : 1), y: this.y + shift[1] * (event.shiftKey ? 8 : 1) }));
    else if (SIZES[event.key]) this.change({ scale: Math.round(100 * (this.scale + SIZES[event.key])) / 100 });
    else return;
    event.preventDefault();
  }
}

export class Objects {
  /**
   * panel: where the words and the rows are. find: the places of objects by their words, or null. onchange: is called when
   * the edit has changed, onlist when the list may have. onsee: to see the edit, where it is not beside the picture.
   */
  constructor(panel, { find, onchange, onlist, onsee }) {
    Object.assign(this, { find, onchange, onlist, list: [], choosing: Promise.resolve() });
    [this.words, this.rows] = ["words", "rows"].map((name) => panel.querySelector(`.object-${name}`));
    this.text = el("span");
    this.status = el("p", { className: "hint object-status" }, this.text, el("button", { type: "button", className: "narrow", onclick: onsee }, "see the edit"));
    this.holes = svg("g");
    this.shapes = svg("g");
    this.layer = svg("svg", { class: "objects" }, this.holes, this.shapes);
  }

  /** Lays the objects over the picture of a view. */
  attach(view) {
    this.view = view;
    this.layer.setAttribute("viewBox", `0 0 ${view.run.size[1]} ${view.run.size[0]}`);
    view.picture.append(this.layer);
    view.picture.after(this.status);
  }

  /** Begins anew for a picture. words: as the library names them. */
  begin(words) {
    const { run } = this.view;
    this.words.replaceChildren(...words.map((word) => el("button", {
      type: "button", value: word, "aria-pressed": "false",
      onclick: () => { this.choosing = this.choosing.then(() => run === this.view.run && this.choose(word)); },
    }, word)));
    this.clear();
  }

  clear() {
    this.list = [];
    this.arrange();
  }

  get request() { return this.list.map((object) => object.request); }

  /** Whether the edit moves objects. If so, one that stays changes it as well: it is in front of those before it. */
  get isMoving() { return this.list.some((object) => !object.isStill); }

  async choose(word) {
    const wasMoving = this.isMoving;
    if (this.list.some((object) => object.word === word)) {
      this.list = this.list.filter((object) => object.word !== word);
      this.arrange();
      this.say(`${word} is no longer chosen`);
    } else if (await this.add([{ word }])) {
      const { shape } = this.list.find((object) => object.word === word);
      reveal(this.view.picture);
      shape.focus({ preventScroll: true });
    } else {
      return;
    }
    if (wasMoving) this.onchange();
  }

  /** Adds objects in the form of a request. -> whether all of them have a place. */
  async add(requests) {
    const { run } = this.view;
    const places = await this.find([...this.request, ...requests]);
    if (!places || run !== this.view.run) return false;
    for (const { word, ...values } of requests) {
      if (this.list.some((object) => object.word === word)) continue;
      const object = new PictureObject(word, run, places[word], (...news) => this.hear(...news));
      object.set(values);
      this.list.push(object);
    }
    this.locate(places); // of all, as they share out the pixels of several places
    this.arrange();
    return true;
  }

  locate(places) {
    for (const object of this.list) if (places[object.word]) object.locate(places[object.word]);
  }

  hear(object, news) {
    if (news === "front") this.list = [...this.list.filter((other) => other !== object), object];
    this.arrange();
    this.say(news === "front" ? `${object.word} is in front` : object.state);
    this.onchange();
  }

  say(text) {
    this.text.textContent = text;
    announce(text);
  }

  /** Brings rows, shapes and buttons in order; what has the focus keeps it. */
  arrange() {
    this.status.hidden = !this.list.length;
    this.list.sort((a, b) => KINDS.indexOf(a.kind) - KINDS.indexOf(b.kind));
    const focused = document.activeElement;
    const drawn = [...this.list].sort((a, b) => (b.kind === "remove") - (a.kind === "remove")); // what goes covers nothing
    for (const [parent, list, name] of [[this.holes, drawn, "hole"], [this.shapes, drawn, "shape"], [this.rows, this.list, "row"]]) {
      const parts = list.map((object) => object[name]);
      if (parts.length !== parent.children.length || parts.some((part, n) => part !== parent.children[n])) parent.replaceChildren(...parts);
    }
    if (focused !== document.activeElement && focused.isConnected) focused.focus({ preventScroll: true });
    this.list.forEach(({ kind, buttons: { front } }, n) => {
      front.hidden = this.list.length === 1;
      front.setAttribute("aria-disabled", String(this.list[n + 1]?.kind !== kind));
    });
    for (const button of this.words.children) button.setAttribute("aria-pressed", String(this.list.some((object) => object.word === button.value)));
    this.onlist();
  }
}
