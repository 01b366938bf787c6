// The text of an episode: prose, cards for blocks, markers, observations. Only changed nodes are updated.
import { el } from "./dom.js";
import { highlight } from "./highlight.js";

const SIGNS = { writing: "✎", pending: "○", running: "◔", done: "●", error: "✗", idle: "–" };

export class Transcript {
  constructor(root) {
    this.root = root;
    this.shown = [];
  }

  /** Show `segments`. Keeps the scroll position at the end if it was there. */
  show(segments) {
    const atEnd = this.root.scrollHeight - this.root.scrollTop - this.root.clientHeight < 40;
    segments = segments.filter((segment) => segment.kind !== "text" || segment.text.trim());
    while (this.shown.length > segments.length) this.shown.pop().node.remove();
    segments.forEach((segment, at) => {
      const known = this.shown[at];
      const key = JSON.stringify([segment.kind, segment.text, segment.state, segment.note, segment.tool?.status]);
      if (known?.key === key) return;
      const node = known?.kind === segment.kind ? known.node : MAKE[segment.kind]();
      FILL[segment.kind](node, segment);
      if (known && known.node !== node) known.node.replaceWith(node);
      else if (!known) this.root.append(node);
      this.shown[at] = { kind: segment.kind, node, key };
    });
    if (atEnd) this.root.scrollTop = this.root.scrollHeight;
  }
}

const MAKE = {
  text: () => el("p", { class: "text" }),
  thinking: () => el("details", { class: "thinking", open: "" }, el("summary", {}, "Thinking"), el("p", { class: "text" })),
  code: () =>
    el("section", { class: "card" }, el("header", {}, el("span", { class: "name" }), el("span", { class: "state" })), el("pre", { tabindex: "0" }, el("code"))),
  marker: () => el("p", { class: "marker" }, el("code"), el("span", {}, "run all pending blocks")),
  observation: () => el("section", { class: "observation" }, el("header", {}), el("pre", { tabindex: "0" })),
};

const FILL = {
  text: (node, { text }) => node.replaceChildren(...answers(text.trim())),
  thinking: (node, { text }) => (node.lastChild.textContent = text.trim()),
  code(node, { text, number, state, note }) {
    const [header, pre] = node.children;
    if (node.dataset.state !== state) node.dataset.state = state;
    node.setAttribute("aria-label", `Python block ${number}, ${note}`);
    header.firstChild.textContent = `Block ${number}`;
    header.lastChild.textContent = `${SIGNS[state]} ${note}`;
    const code = text.replace(/\n$/, "");
    if (pre.textContent !== code) pre.firstChild.replaceChildren(...highlight(code));
  },
  marker: (node, { text }) => (node.firstChild.textContent = text),
  observation(node, { text, tool }) {
    const failed = tool && tool.status !== "ok";
    node.dataset.state = failed ? "error" : "done";
    const count = tool?.blocks.length ?? 0;
    const what = tool ? `Output of ${count} block${count === 1 ? "" : "s"}` : "Observation";
    node.firstChild.textContent = failed ? `${what}: ${tool.status.replace("_", " ")}, all changes rolled back` : what;
    node.lastChild.textContent = text || "(no output)";
  },
};

/** Return prose with boxed answers highlighted. */
function answers(text) {
  return text.split(/(\\boxed\{[^{}]*\})/).map((part) => {
    const boxed = /^\\boxed\{([^{}]*)\}$/.exec(part);
    return boxed ? el("mark", { class: "answer", title: part }, boxed[1]) : part;
  });
}
