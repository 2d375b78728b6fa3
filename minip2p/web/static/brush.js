// A region, drawn with a brush on a picture: cells that an edit may change.

const CELLS = 64;

export class Brush {
  /** size: the slider of its width. ondraw: is called when the region has changed. onchange: with whether it is empty. */
  constructor(size, { ondraw, onchange }) {
    Object.assign(this, { size, ondraw, onchange, isOn: false });
    this.canvas = document.createElement("canvas");
    this.canvas.className = "region";
    this.canvas.width = this.canvas.height = CELLS;
    this.canvas.setAttribute("aria-hidden", "true");
    this.isEmpty = true;
  }

  /** Lays the region over a picture. */
  attach({ picture }) {
    picture.append(this.canvas);
    picture.addEventListener("pointerdown", (event) => {
      if (!this.isOn || event.button) return;
      picture.setPointerCapture(event.pointerId);
      this.last = this.at(event);
      this.stroke(this.last);
      event.preventDefault();
    });
    picture.addEventListener("pointermove", (event) => this.isOn && this.last && this.stroke(this.at(event)));
    const end = () => {
      if (!this.last) return;
      this.last = null;
      this.ondraw();
    };
    for (const type of ["pointerup", "pointercancel"]) picture.addEventListener(type, end);
  }

  at(event) {
    const box = this.canvas.getBoundingClientRect();
    return [CELLS * (event.clientX - box.left) / box.width, CELLS * (event.clientY - box.top) / box.height];
  }

  stroke(to) {
    const context = this.canvas.getContext("2d");
    context.strokeStyle = "#c2186a";
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
}
