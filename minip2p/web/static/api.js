// Where runs and maps come from: a server (`ServerApi`) or the files of a static export (`StaticApi`).
// Both have the same methods. Errors are `Error` objects whose message is one line.

export async function connect() {
  const data = document.querySelector('meta[name="minip2p-data"]');
  return data ? StaticApi.open(data.content) : new ServerApi();
}

/** What a server answers. Throws an `AbortError` where nobody waits for it any more. */
async function answered(answer) {
  try {
    return await answer;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer: start minip2p app again.");
  }
}

async function checked(answer) {
  const response = await answered(answer);
  if (response.ok) return response;
  let message = `the server answered ${response.status}`;
  try {
    message = (await response.json()).error || message;
  } catch {
    // not JSON: the status is all there is to say
  }
  throw Object.assign(new Error(message), { status: response.status });
}

class ServerApi {
  isStatic = false;

  async json(path, body) {
    const options = body === undefined ? {} : {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
    };
    return (await checked(fetch(path, options))).json();
  }

  model() { return this.json("api/model"); }
  align(source, target) { return this.json("api/align", { source, target }); }
  recipe(run) { return this.json(`api/run/${run.id}/recipe`); }
  run(id) { return this.json(`api/run/${encodeURIComponent(id)}`); }
  check(url) { return checked(fetch(url)); }

  async upload(path, file) {
    const form = new FormData();
    form.append("file", file);
    return (await checked(fetch(path, { method: "POST", body: form }))).json();
  }

  photo(file) { return this.upload("api/photo", file); }
  settings(file) { return this.upload("api/settings", file); }

  async maps(run, signal) {
    return (await checked(fetch(`api/run/${run.id}/maps`, { signal }))).arrayBuffer();
  }

  /** The events of a job, in order, the last of type "result". Aborting the signal cancels the job. Throws on "error". */
  async *job(kind, body, signal) {
    const response = await checked(fetch(`api/${kind}`, {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal,
    }));
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { value, done } = await answered(reader.read());
      if (done) throw new Error("The server has stopped before the picture was done.");
      text += value;
      const parts = text.split("\n\n");
      text = parts.pop();
      for (const part of parts) {
        const data = part.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5)).join("");
        if (!data) continue;
        const event = JSON.parse(data);
        if (event.type === "error") throw new Error(event.error);
        yield event;
        if (event.type === "result") return;
      }
    }
  }

  links(run) {
    const base = `api/run/${run.id}`;
    return [
      ["PNG", `${base}/picture.png`, "minip2p.png"], ["Animation", `${base}/animation.gif`, "minip2p.gif"],
      ["Run file", `${base}/run.safetensors`, "run.safetensors"],
    ];
  }

  difference(run, other) { return `api/run/${run.id}/difference.png?to=${other.id}`; }
}

class StaticApi {
  isStatic = true;

  static async open(url) {
    const api = new StaticApi();
    api.folder = url.slice(0, url.lastIndexOf("/") + 1);
    api.data = await (await checked(fetch(url))).json();
    return api;
  }

  async model() { return this.data.model; }
  async align() { return this.example.align; }
  async recipe(run) { return run.recipe; }
  async maps(run, signal) { return (await checked(fetch(this.folder + run.maps, { signal }))).arrayBuffer(); }
  links(run) { return [["PNG", run.picture, "minip2p.png"]]; }
  difference() { return null; }

  /** A run with its addresses seen from the page. */
  located(run) {
    const urls = {};
    for (const key of ["picture", "original", "mask"]) {
      if (run[key] && !run[key].startsWith(this.folder)) urls[key] = this.folder + run[key];
    }
    return { ...run, ...urls };
  }

  async *job(kind, body) {
    if (kind === "generate") {
      this.example = this.data.examples[body.example];
      yield { type: "result", run: this.located(this.example.source) };
    } else {
      const { cross, self, runs } = this.example.edits;
      const nearest = (values, value) => values.reduce(
        (best, v, i) => (Math.abs(v - value) < Math.abs(values[best] - value) ? i : best), 0);
      const run = runs[nearest(self, body.self)][nearest(cross, body.cross)];
      const plain = body.compare ? { plain: this.located(this.example.plain) } : {};
      yield { type: "result", run: this.located(run), ...plain };
    }
  }
}
