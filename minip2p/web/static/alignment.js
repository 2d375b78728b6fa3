// Which word of the source feeds which word of the target: two rows of words with lines between them.

import { el, svg } from "./dom.js";

export function drawAlignment(container, { source, target, links, kind }) {
  const words = (list, name) => el("ol", { className: "row", "aria-label": name },
    ...list.map((word) => el("li", {}, word.text)));
  const from = words(source, "Words of the picture's prompt");
  const to = words(target, "Words of the new prompt");
  const drawing = svg("svg", { "aria-hidden": "true" });
  const pairs = links.map(([i, j]) => `${source[i].text} → ${target[j].text}`).join(", ");
  const box = el("div", { className: "alignment" }, el("div", {}, from, drawing, to),
    el("p", { className: "visually-hidden" }, `The words are matched so: ${pairs}`));
  container.replaceChildren(box);
  const linked = new Set(links.map(([, j]) => j));
  [...to.children].forEach((item, j) => {
    const changed = !linked.has(j) || links.some(([i, k]) => k === j && source[i].text !== target[j].text);
    item.classList.toggle("changed", changed);
    item.title = linked.has(j) ? "takes the attention of the words above it" : "new: it has its own attention";
  });
  const isSame = links.length === source.length && source.length === target.length && !to.querySelector(".changed");
  container.append(el("p", { className: "hint" }, isSame ? "Change a word, or add some."
    : kind === "swap" ? "Words are exchanged: each word takes the attention of the word above it."
      : "Words are added or taken away: words that stay keep their attention, new ones get their own."));
  const draw = () => {
    const frame = drawing.getBoundingClientRect();
    drawing.setAttribute("viewBox", `0 0 ${frame.width} ${frame.height}`);
    drawing.replaceChildren(...links.map(([i, j, weight]) => {
      const centre = (item) => {
        const b = item.getBoundingClientRect();
        return b.left + b.width / 2 - frame.left;
      };
      const [a, b] = [centre(from.children[i]), centre(to.children[j])];
      const d = `M${a},0 C${a},${frame.height / 2} ${b},${frame.height / 2} ${b},${frame.height}`;
      const line = svg("path", { d, "stroke-opacity": Math.max(0.25, weight) });
      line.classList.toggle("changed", source[i].text !== target[j].text);
      return line;
    }));
  };
  draw();
  new ResizeObserver(draw).observe(box);
}
