// Renders text of the model: Markdown, mathematics and highlighted code. Markup is created by DOMPurify only.
import { button, copyText, el } from "./dom.js";

const STANDALONE_PAGE = document.documentElement.dataset.standalone !== undefined;
const MARKDOWN_TAGS =
  "p br hr h3 h4 h5 h6 ul ol li blockquote pre code em strong s del a table thead tbody tr th td span mark".split(" ");
const TABLE_TAGS = "table caption colgroup col thead tbody tfoot tr th td br b i em strong sub sup span p div".split(" ");
const MATHS = { macros: {}, trust: false, strict: "ignore", maxSize: 30, maxExpand: 300, throwOnError: true };
const PLAIN = /^[^\\^_{}$]*$/; // a boxed answer that needs no typesetting

DOMPurify.addHook("afterSanitizeAttributes", (node) => {
  if (node.tagName !== "A") return;
  if (!/^https?:/.test(node.getAttribute("href") ?? "")) node.removeAttribute("href");
  node.setAttribute("target", "_blank");
  node.setAttribute("rel", "noopener noreferrer nofollow");
});

const markdown = makeParser();

/** Return `text` as nodes. */
export function markdownNodes(text) {
  const content = clean(markdown.render(text), MARKDOWN_TAGS, ["href", "class", "start", "title"]);
  for (const node of content.querySelectorAll(".maths")) typeset(node);
  for (const pre of content.querySelectorAll("pre")) addCopyButton(pre);
  for (const table of content.querySelectorAll("table")) table.replaceWith(scrollable(table.cloneNode(true)));
  return content;
}

/** Return Python code as highlighted nodes. */
export const pythonNodes = (code) => clean(highlighted(code, "python"), ["span"], ["class"]);

/** Return a table that code has written as HTML. The code can write anything, so only plain cells are kept. */
export const tableNodes = (html) => scrollable(clean(html, TABLE_TAGS, ["colspan", "rowspan", "scope"]));

function clean(html, tags, attributes) {
  return DOMPurify.sanitize(html, {
    ALLOWED_TAGS: tags,
    ALLOWED_ATTR: attributes,
    ALLOW_DATA_ATTR: false,
    ALLOW_ARIA_ATTR: false,
    RETURN_DOM_FRAGMENT: true,
  });
}

const scrollable = (content) => el("div", { class: "table", tabindex: "0", role: "region", "aria-label": "Table" }, content);

function addCopyButton(pre) {
  const language = /language-([\w+-]+)/.exec(pre.firstElementChild?.className ?? "")?.[1] ?? "text";
  const copy = button("Copy", () => copyText(pre.textContent, copy, "Code"), { class: "quiet small" });
  pre.setAttribute("tabindex", "0");
  const block = el("div", { class: "fence" }, el("header", {}, el("span", {}, language), copy));
  pre.replaceWith(block);
  block.append(pre);
}

function typeset(node) {
  const source = node.textContent;
  const displayMode = node.classList.contains("display");
  try {
    // MathML needs no fonts, which a standalone page doesn't have.
    katex.render(source, node, { ...MATHS, displayMode, output: STANDALONE_PAGE ? "mathml" : "htmlAndMathml" });
  } catch {
    node.replaceChildren(el("code", { title: "Not valid LaTeX" }, source));
  }
}

function highlighted(code, language) {
  if (!hljs.getLanguage(language)) return markdownit().utils.escapeHtml(code);
  return hljs.highlight(code, { language, ignoreIllegals: true }).value;
}

function makeParser() {
  const parser = markdownit({ html: false, linkify: true, highlight: highlighted });
  parser.disable("image"); // a picture would be a request to another server
  parser.inline.ruler.before("escape", "maths", inlineMaths);
  parser.block.ruler.before("fence", "display_maths", blockMaths, { alt: ["paragraph", "blockquote", "list"] });
  const escape = parser.utils.escapeHtml;
  Object.assign(parser.renderer.rules, {
    maths: (tokens, at) => `<span class="maths${tokens[at].info}">${escape(tokens[at].content)}</span>`,
    boxed(tokens, at) {
      const text = tokens[at].content;
      return `<mark class="answer">${PLAIN.test(text) ? escape(text) : `<span class="maths">${escape(text)}</span>`}</mark>`;
    },
  });
  parser.core.ruler.push("demote", (state) => state.tokens.forEach(demote));
  return parser;
}

/** Headings of an answer start at level 3. Cells keep their alignment as a class, because styles are blocked. */
function demote(token) {
  if (token.type.startsWith("heading")) token.tag = `h${Math.min(Number(token.tag[1]) + 2, 6)}`;
  const style = token.attrGet("style");
  if (style) token.attrs = [["class", style.replace("text-align:", "")]];
}

const CLOSING = { "\\(": "\\)", "\\[": "\\]", $$: "$$", $: "$" };

/** \( \), \[ \], $ $, $$ $$ and \boxed{ } within a paragraph. */
function inlineMaths(state, silent) {
  const { src, pos } = state;
  if (src.startsWith("\\boxed{", pos)) return boxedAnswer(state, silent);
  const opening = ["\\(", "\\[", "$$", "$"].find((mark) => src.startsWith(mark, pos));
  if (!opening) return false;
  const start = pos + opening.length;
  const end = closingAt(src, start, CLOSING[opening]);
  const content = src.slice(start, end);
  if (end < 0 || !content.trim()) return false;
  // "$5 and $6" is not mathematics.
  if (opening === "$" && (/^\s|\s$/.test(content) || /\d/.test(src[end + 1] ?? ""))) return false;
  if (!silent) {
    const token = state.push("maths", "", 0);
    token.content = content;
    token.info = opening === "$$" || opening === "\\[" ? " display" : "";
  }
  state.pos = end + CLOSING[opening].length;
  return true;
}

function closingAt(text, start, closing) {
  for (let at = text.indexOf(closing, start); at >= 0; at = text.indexOf(closing, at + 1)) {
    if (closing[0] === "\\" || text[at - 1] !== "\\") return at;
  }
  return -1;
}

/** \boxed{...} outside of mathematics. Braces may be nested. */
function boxedAnswer(state, silent) {
  const start = state.pos + "\\boxed{".length;
  let depth = 1;
  let end = start;
  for (; end < state.posMax; end++) {
    if (state.src[end] === "\\") end++;
    else if (state.src[end] === "{") depth++;
    else if (state.src[end] === "}" && --depth === 0) break;
  }
  if (depth) return false;
  if (!silent) state.push("boxed", "", 0).content = state.src.slice(start, end);
  state.pos = end + 1;
  return true;
}

/** A formula that begins a line and may contain lines that look like Markdown. */
function blockMaths(state, startLine, endLine, silent) {
  const start = state.bMarks[startLine] + state.tShift[startLine];
  const opening = ["$$", "\\["].find((mark) => state.src.startsWith(mark, start));
  if (!opening || state.sCount[startLine] - state.blkIndent >= 4) return false;
  const limit = state.eMarks[endLine - 1];
  const end = closingAt(state.src.slice(0, limit), start + 2, CLOSING[opening]);
  if (end < 0 || /\n[ \t]*\n/.test(state.src.slice(start, end))) return false;
  let line = startLine;
  while (state.eMarks[line] < end) line++;
  if (state.src.slice(end + 2, state.eMarks[line]).trim().length > 1) return false; // text follows: not a formula alone
  if (silent) return true;
  const token = state.push("maths", "", 0);
  token.block = true;
  token.content = state.src.slice(start + 2, end);
  token.info = " display";
  token.map = [startLine, line + 1];
  state.line = line + 1;
  return true;
}
