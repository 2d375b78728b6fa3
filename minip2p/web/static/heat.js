// Draws a map of shares over a picture.

// "Inferno" of matplotlib at nine places: it grows lighter with the value, and colour-blind people can read it.
const INFERNO = [[0, 0, 4], [31, 12, 72], [85, 15, 109], [136, 34, 106], [186, 54, 85], [227, 89, 51], [249, 140, 10], [249, 201, 50], [252, 255, 164]];

const COLOURS = Array.from({ length: 256 }, (_, value) => {
  const place = value / 255 * (INFERNO.length - 1);
  const n = Math.min(INFERNO.length - 2, Math.floor(place));
  return INFERNO[n].map((from, c) => from + (place - n) * (INFERNO[n + 1][c] - from));
});

export const GRADIENT = `linear-gradient(to right, ${INFERNO.map((colour) => `rgb(${colour})`).join(", ")})`;

/** values: rows · columns shares. top: the share that is drawn brightest. */
export function drawHeat(canvas, { rows, columns, values }, top) {
  const small = document.createElement("canvas");
  small.width = columns;
  small.height = rows;
  const context = small.getContext("2d");
  const pixels = context.createImageData(columns, rows);
  for (let n = 0; n < values.length; n++) {
    const level = Math.min(255, Math.round(255 * values[n] / top)) || 0;
    const [r, g, b] = COLOURS[level];
    pixels.data.set([r, g, b, 90 + 130 * level / 255], 4 * n);
  }
  context.putImageData(pixels, 0, 0);
  canvas.width = 512;
  canvas.height = Math.round(512 * rows / columns);
  const target = canvas.getContext("2d");
  target.imageSmoothingQuality = "high";
  target.drawImage(small, 0, 0, canvas.width, canvas.height);
}
