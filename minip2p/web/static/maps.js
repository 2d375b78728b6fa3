// The attention maps of a run, sent once as bytes: value = round(255 √p). Axes: steps, heads, pixels, tokens.

const SHARE = Float32Array.from({ length: 256 }, (_, value) => (value / 255) ** 2);

export class Maps {
  constructor(buffer) {
    const length = new DataView(buffer).getUint32(0, true);
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
    this.bytes = new Uint8Array(buffer, 4 + length);
    this.tokens = header.tokens;
    this.cross = header.cross;
    this.self = header.self;
    this.steps = Math.max(...header.cross.map((site) => site.steps));
    this.heads = Math.max(...header.cross.map((site) => site.heads));
  }

  /** What can be chosen: [value, label, group]. The first is the default: the resolution nearest to 16 × 16. */
  layers() {
    const sizes = new Map();
    for (const site of this.cross) {
      const key = `${site.rows} × ${site.columns}`;
      sizes.set(key, [...(sizes.get(key) || []), site]);
    }
    const area = (sites) => Math.abs(Math.log(sites[0].rows * sites[0].columns / 256));
    const outer = [...sizes].sort(([, a], [, b]) => area(a) - area(b));
    return [
      ...outer.map(([size, sites]) => [`size:${sites[0].stride}`, `${size} (${sites.length === 1 ? "1 layer" : `${sites.length} layers`})`, "Resolution"]),
      ["all", "all layers", "Resolution"],
      ...this.cross.map((site, n) => [`site:${n}`, `${site.place} ${site.index}, ${site.rows} × ${site.columns}`, "Layer"]),
    ];
  }

  sites(layer) {
    const [kind, value] = layer.split(":");
    if (kind === "site") return [this.cross[Number(value)]];
    return kind === "size" ? this.cross.filter((site) => site.stride === Number(value)) : this.cross;
  }

  /** The mean over what is not chosen. step, head: a number, or null for all. -> {rows, columns, shares}. */
  select({ layer, step, head }) {
    const sites = this.sites(layer);
    const finest = sites.reduce((best, site) => (site.rows > best.rows ? site : best));
    const { rows, columns } = finest;
    const tokens = this.tokens.length;
    const shares = new Float32Array(rows * columns * tokens);
    for (const site of sites) {
      const size = site.rows * site.columns * tokens;
      const sum = new Float32Array(size);
      const steps = step === null || site.steps === 1 ? range(site.steps) : [step];
      const heads = head === null || site.heads === 1 ? range(site.heads) : [head];
      for (const t of steps) {
        for (const h of heads) {
          const start = site.offset + (t * site.heads + h) * size;
          for (let n = 0; n < size; n++) sum[n] += SHARE[this.bytes[start + n]];
        }
      }
      const weight = 1 / (steps.length * heads.length * sites.length);
      for (let y = 0; y < rows; y++) {
        const from = Math.floor(y * site.rows / rows);
        for (let x = 0; x < columns; x++) {
          const at = (from * site.columns + Math.floor(x * site.columns / columns)) * tokens;
          const to = (y * columns + x) * tokens;
          for (let j = 0; j < tokens; j++) shares[to + j] += weight * sum[at + j];
        }
      }
    }
    return { rows, columns, shares };
  }

  /** One token's map of a selection. */
  token(selection, j) {
    const tokens = this.tokens.length;
    return Float32Array.from({ length: selection.rows * selection.columns }, (_, n) => selection.shares[n * tokens + j]);
  }

  /** The tokens by their share at a place (u, v in [0, 1], rightwards and downwards): [token, share], largest first. */
  ranking(selection, u, v) {
    const y = Math.min(selection.rows - 1, Math.floor(v * selection.rows));
    const x = Math.min(selection.columns - 1, Math.floor(u * selection.columns));
    const start = (y * selection.columns + x) * this.tokens.length;
    return this.tokens.map((token, j) => [token, selection.shares[start + j]]).sort((a, b) => b[1] - a[1]);
  }

  /** The self-attention sites that belong to a layer's choice: those of its place or size, or else the finest. */
  selfSites(layer) {
    const sites = this.sites(layer);
    const [kind] = layer.split(":");
    const chosen = this.self.filter((site) => sites.some((cross) => (kind === "site"
      ? cross.place === site.place && cross.index === site.index : kind === "size" && cross.stride === site.stride)));
    const rows = Math.max(...this.self.map((site) => site.rows));
    return chosen.length ? chosen : this.self.filter((site) => site.rows === rows);
  }

  /** Where the place (u, v) looks, by the layer's self-attention: the mean over heads and steps. -> {rows, columns, values}. */
  lookFrom(u, v, layer) {
    const sites = this.selfSites(layer);
    const { rows, columns } = sites[0];
    const count = rows * columns;
    const query = Math.min(rows - 1, Math.floor(v * rows)) * columns + Math.min(columns - 1, Math.floor(u * columns));
    const values = new Float32Array(count);
    for (const site of sites) {
      for (let n = 0; n < count; n++) values[n] += SHARE[this.bytes[site.offset + query * count + n]] / sites.length;
    }
    return { rows, columns, values };
  }
}

const range = (n) => Array.from({ length: n }, (_, i) => i);
