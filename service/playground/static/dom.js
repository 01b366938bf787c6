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

export const byId = (id) => document.getElementById(id);
