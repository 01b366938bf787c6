// Helpers that create elements. Text is always inserted as text, so model output never becomes markup.

const SVG = "http://www.w3.org/2000/svg";

/** Create an HTML element. Strings in `children` become text nodes. */
export const el = (name, attributes = {}, ...children) => fill(document.createElement(name), attributes, children);

/** Create an SVG element. */
export const svg = (name, attributes = {}, ...children) => fill(document.createElementNS(SVG, name), attributes, children);

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Create a button that calls `action`. */
export function button(label, action, attributes = {}) {
  const node = el("button", { type: "button", ...attributes }, label);
  node.addEventListener("click", action);
  return node;
}

export const byId = (id) => document.getElementById(id);

/** Announce `words` to screen readers. */
export const announce = (words) => (byId("status").textContent = words);

/** Copy text to the clipboard, or show it if the browser doesn't allow that. `node` reports the success. */
export async function copyText(text, node, what = "Text") {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    window.prompt(`${what}:`, text);
    return;
  }
  announce(`${what} copied.`);
  const label = node.dataset.label ?? node.textContent;
  node.dataset.label = label;
  node.textContent = "Copied ✓";
  setTimeout(() => (node.textContent = label), 1500);
}

/** Save `blob` as a file named `name`. */
export function saveBlob(blob, name) {
  const url = URL.createObjectURL(blob);
  el("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** Format a size in bytes. */
export function bytesText(bytes) {
  if (bytes < 1000) return `${bytes} B`;
  return bytes < 1e6 ? `${(bytes / 1e3).toFixed(1)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}
