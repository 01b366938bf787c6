// The text of an episode: prose, cards for blocks, markers, observations. Only changed nodes are updated.
import { button, copyText, el } from "./dom.js";
import { markdownNodes, pythonNodes } from "./markdown.js";
import { resultNodes } from "./outputs.js";

const SIGNS = { writing: "✎", pending: "○", running: "◔", done: "●", error: "✗", idle: "–" };

export class Transcript {
  /** `online` is false if the page has no server, so that files can't be fetched. `decide(call, approve)` decides
   *  about a call that needs approval. */
  constructor(root, online = true, decide = null) {
    this.root = root;
    this.online = online;
    this.decide = decide;
    this.shown = [];
  }

  /** Show `segments`. */
  show(segments) {
    segments = segments.filter((segment) => segment.kind !== "text" || segment.text.trim());
    while (this.shown.length > segments.length) this.shown.pop().node.remove();
    segments.forEach((segment, at) => {
      const known = this.shown[at];
      const key = JSON.stringify([segment.kind, segment.text, segment.state, segment.note, segment.tool?.status, segment.live]);
      if (known?.key === key) return;
      const node = known?.kind === segment.kind ? known.node : MAKE[segment.kind]();
      FILL[segment.kind](node, segment, this);
      if (known && known.node !== node) known.node.replaceWith(node);
      else if (!known) this.root.append(node);
      this.shown[at] = { kind: segment.kind, node, key };
    });
  }
}

/** A header with a label, a state and a button that copies the text of the <pre> beside it. */
function head(what) {
  const copy = button("Copy", () => copyText(copy.closest("section").querySelector("pre").textContent, copy, what), { class: "quiet small" });
  return el("header", {}, el("span", { class: "name" }), el("span", { class: "state" }), copy);
}

const MAKE = {
  text: () => el("div", { class: "text" }),
  thinking: () => el("details", { class: "thinking", open: "" }, el("summary", {}, "Thinking"), el("div", { class: "text" })),
  code: () => el("section", { class: "card" }, head("Code"), el("pre", { tabindex: "0" }, el("code"))),
  marker: () => el("p", { class: "marker" }, el("code"), el("span", {}, "run all pending blocks")),
  approval: () => el("section", { class: "approval" }, el("p", {}), el("pre", { tabindex: "0" }), el("div", { class: "row" })),
  observation: () => el("section", { class: "observation" }, head("Output"), el("div", { class: "seen" })),
};

const FILL = {
  text: (node, { text }) => node.replaceChildren(markdownNodes(text.trim())),
  thinking: (node, { text }) => node.lastChild.replaceChildren(markdownNodes(text.trim())),
  code(node, { text, number, state, note }) {
    const [header, pre] = node.children;
    if (node.dataset.state !== state) node.dataset.state = state;
    node.setAttribute("aria-label", `Python block ${number}, ${note}`);
    header.children[0].textContent = `Block ${number}`;
    header.children[1].textContent = `${SIGNS[state]} ${note}`;
    const code = text.replace(/\n$/, "");
    if (pre.textContent !== code) pre.firstChild.replaceChildren(pythonNodes(code));
  },
  marker: (node, { text }) => (node.firstChild.textContent = text),
  approval(node, call, { decide }) {
    const [title, pre, row] = node.children;
    const what = `${call.name} of ${call.server}`;
    const by = call.by === "timeout" ? "; there was no decision in time" : "";
    node.dataset.state = call.state;
    node.setAttribute("aria-label", `Call of ${what}, ${call.state}`);
    title.replaceChildren(el("strong", {}, call.name), ` of ${call.server} `, call.state === "open" ? "needs your approval" : `${call.state}${by}`);
    pre.textContent = indented(call.text);
    const choose = (approve) => {
      for (const choice of row.children) choice.disabled = true;
      decide(call, approve);
    };
    const choices = [button("Approve", () => choose(true), { class: "primary small", "aria-label": `Approve ${what}` }), button("Deny", () => choose(false), { class: "small", "aria-label": `Deny ${what}` })];
    row.replaceChildren(...(call.state === "open" && decide ? choices : []));
  },
  observation(node, { text, tool, live }, { online }) {
    node.classList.toggle("live", Boolean(live));
    const failed = tool && tool.status !== "ok";
    node.dataset.state = failed ? "error" : "done";
    const count = tool?.blocks.length ?? 0;
    const what = tool ? `Output of ${count} block${count === 1 ? "" : "s"}` : live ? "Output so far" : "Observation";
    const label = failed ? `${what}: ${tool.status.replace("_", " ")}, all changes rolled back` : what;
    node.setAttribute("aria-label", label);
    node.firstChild.firstChild.textContent = label;
    const results = tool ? resultNodes(tool, online) : [];
    const output = el("pre", { tabindex: "0" }, text || "(no output)");
    // A table is shown instead of its text, which stays one click away.
    const shown = tool?.tables?.length ? el("details", {}, el("summary", {}, "Text that the model read"), output) : output;
    node.lastChild.replaceChildren(...(text || results.length === 0 ? [shown] : []), ...results);
  },
};

/** JSON with line breaks; text that is not JSON is unchanged. */
function indented(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
