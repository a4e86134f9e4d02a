// Small things that all pages use. Text of people and models is only ever set as text, never as HTML.

export const byId = (id) => document.getElementById(id);

/** Make an element: attributes, `on...` handlers, and children that are elements or text. */
export function element(name, attributes = {}, ...children) {
  const space = ["svg", "path", "line", "text", "rect", "title"].includes(name) && attributes.svg !== false;
  const made = space ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== null && value !== false && key !== "svg") made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

/** Say in the page's alert what went wrong; an empty text takes it away. */
export function complain(text) {
  byId("problem").textContent = text;
  byId("problem").hidden = !text;
}

export const megabytes = (bytes) => `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;

/** Hand the reader a file. */
export function download(name, text) {
  const link = element("a", { href: URL.createObjectURL(new Blob([text], { type: "application/jsonl" })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/** A random seed, as llama.cpp takes it. */
export const newSeed = () => crypto.getRandomValues(new Uint32Array(1))[0] % 2 ** 31;

/** A line about an answer: how long, how fast, from which seed, and what was left out or cut. */
export function describe({ tokens, first, seconds, seed, cut, dropped, stopped }) {
  const parts = [`${tokens} token${tokens === 1 ? "" : "s"}`];
  if (tokens > 1 && seconds > first) parts.push(`${Math.round((tokens - 1) / (seconds - first))} tokens/s`);
  if (tokens) parts.push(`first after ${first.toFixed(2)} s`);
  parts.push(`seed ${seed}`);
  if (stopped) parts.push("stopped");
  if (cut) parts.push("cut at the longest answer");
  if (dropped) parts.push(`the oldest ${dropped} turn${dropped === 1 ? "" : "s"} did not fit and were left out`);
  return parts.join(" · ");
}
