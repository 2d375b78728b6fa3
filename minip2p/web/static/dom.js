// Elements from values. Text is always set as text, never as HTML.

export function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && !name.startsWith("aria")) element[name] = value;
    else if (value !== null && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** What a page's storage (session or local) has of a name; with a value, stores it. Null where there is no storage. */
export function stored(storage, name, value) {
  try {
    if (value !== undefined) window[storage].setItem(name, value);
    return window[storage].getItem(name);
  } catch {
    return null;
  }
}

export const percent = (share) => {
  const value = 100 * share;
  return value >= 9.95 ? `${value.toFixed(0)} %` : value >= 0.095 ? `${value.toFixed(1)} %` : "< 0.1 %";
};

/** Tells a screen reader what has happened. */
export function announce(text) { document.getElementById("status").textContent = text; }

/** Scrolls so far that an element is seen. */
export function reveal(element, block = "nearest") {
  element.scrollIntoView({ block, behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
}

/** Calls `f` once, when no further call has come for `delay` milliseconds. */
export function debounce(f, delay) {
  let timer;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => f(...values), delay);
  };
}
