// A region, drawn with a brush on a picture: cells that an edit may change.

import { announce, el } from "./dom.js";

const CELLS = 64;
const COLOUR = "#c2186a";
const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const SIZES = { "+": 1, "=": 1, "-": -1 };

export class Brush {
  /** size: the slider of its width. ondraw: is called when the region has changed. onchange: with whether it is empty. */
  constructor(size, { ondraw, onchange }) {
    Object.assign(this, { size, ondraw, onchange, isEmpty: true, cursor: [CELLS / 2, CELLS / 2] });
    this.canvas = el("canvas", {
      className: "region", width: CELLS, height: CELLS, role: "application", "aria-label": "The region", "aria-describedby": "brush-keys",
      onkeydown: (event) => this.key(event), onkeyup: (event) => event.key === " " && this.end(), onblur: () => this.end(),
    });
    this.ring = el("span", { className: "brush-cursor", "aria-hidden": "true" });
    size.addEventListener("input", () => this.place());
    this.turn(false);
    this.place();
  }

  /** Switches the brush on or off. */
  turn(isOn) {
    this.isOn = isOn;
    this.canvas.tabIndex = isOn ? 0 : -1;
    this.canvas.setAttribute("aria-hidden", String(!isOn));
    if (isOn) this.canvas.focus({ preventScroll: true });
  }

  /** Lays the region over a picture. */
  attach({ picture }) {
    picture.append(this.canvas, this.ring);
    picture.addEventListener("pointerdown", (event) => {
      if (!this.isOn || event.button) return;
      picture.setPointerCapture(event.pointerId);
      this.last = this.at(event);
      this.stroke(this.last);
      event.preventDefault();
    });
    picture.addEventListener("pointermove", (event) => this.last && picture.hasPointerCapture(event.pointerId) && this.stroke(this.at(event)));
    for (const type of ["pointerup", "pointercancel"]) picture.addEventListener(type, () => this.end());
  }

  /** Ends a stroke. */
  end() {
    if (!this.last) return;
    this.last = null;
    this.ondraw();
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const move = MOVES[event.key];
    if (move) {
      this.cursor = this.cursor.map((value, n) => Math.max(0, Math.min(CELLS, value + move[n] * (event.shiftKey ? 8 : 1))));
      if (this.last) this.stroke(this.cursor); // while Space is held
    } else if (event.key === " ") {
      this.last ||= this.cursor;
      this.stroke(this.cursor);
    } else if (SIZES[event.key]) {
      this.size.value = Number(this.size.value) + SIZES[event.key];
    } else if (event.key === "Escape") {
      this.clear();
    } else {
      return;
    }
    event.preventDefault();
    this.place();
    announce(`brush ${this.size.value} wide, ${this.state}`);
  }

  /** Where the cursor of the keyboard is, in words. */
  get state() {
    const [x, y] = this.cursor.map((value) => Math.min(CELLS - 1, Math.floor(value)));
    const isInside = this.canvas.getContext("2d").getImageData(x, y, 1, 1).data[3] > 127;
    const percents = this.cursor.map((value) => Math.round(100 * value / CELLS));
    return `${percents[0]} % from the left, ${percents[1]} % from the top: ${isInside ? "in the region" : this.isEmpty ? "the region is empty" : "outside of the region"}`;
  }

  /** Draws the cursor of the keyboard, as wide as the brush. */
  place() {
    const [x, y] = this.cursor.map((value) => `${100 * value / CELLS}%`);
    Object.assign(this.ring.style, { left: x, top: y, width: `${100 * this.size.value / CELLS}%` });
  }

  at(event) {
    const box = this.canvas.getBoundingClientRect();
    return [CELLS * (event.clientX - box.left) / box.width, CELLS * (event.clientY - box.top) / box.height];
  }

  stroke(to) {
    const context = this.canvas.getContext("2d");
    context.strokeStyle = COLOUR;
    context.lineCap = "round";
    context.lineWidth = Number(this.size.value);
    context.beginPath();
    context.moveTo(...this.last);
    context.lineTo(to[0] + 0.01, to[1]);
    context.stroke();
    this.last = to;
    this.isEmpty = false;
    this.onchange(false);
  }

  clear(isTold = true) {
    this.canvas.getContext("2d").clearRect(0, 0, CELLS, CELLS);
    const wasEmpty = this.isEmpty;
    this.isEmpty = true;
    this.onchange(true);
    if (isTold && !wasEmpty) this.ondraw();
  }

  /** {rows, columns, cells: base64 of bytes 0 or 255}, or null where nothing is drawn. */
  region() {
    if (this.isEmpty) return null;
    const { data } = this.canvas.getContext("2d").getImageData(0, 0, CELLS, CELLS);
    let cells = "";
    for (let n = 3; n < data.length; n += 4) cells += String.fromCharCode(data[n] > 127 ? 255 : 0);
    return { rows: CELLS, columns: CELLS, cells: btoa(cells) };
  }

  /** Draws what `region` has returned. */
  restore(region) {
    if (!region) return;
    const context = this.canvas.getContext("2d");
    context.fillStyle = COLOUR;
    [...atob(region.cells)].forEach((cell, n) => cell === "\xff" && context.fillRect(n % CELLS, Math.floor(n / CELLS), 1, 1));
    this.isEmpty = false;
    this.onchange(false);
  }
}
