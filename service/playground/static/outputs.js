// Results of a flush beside its text: figures, tables, files to download, and calls of tools.
import { UserError, fetchContent } from "./api.js";
import { announce, button, bytesText, el, saveBlob } from "./dom.js";
import { tableNodes } from "./markdown.js";
import { milliseconds } from "./segments.js";

const contents = new Map(); // object URLs of figures, by path

/** Return nodes for the tables, files and calls of `tool`. */
export function resultNodes(tool, online) {
  const files = tool.files ?? [];
  const figures = files.filter(isFigure);
  return [
    ...(tool.tables ?? []).map((html) => tableNodes(String(html))),
    ...(online ? figures.map(figure) : []),
    ...fileList(online ? files : [], files),
    ...skipped(tool.skipped_files ?? []),
    ...calls(tool.calls ?? []),
  ];
}

const isFigure = (file) => String(file.media_type).startsWith("image/");
const nameOf = (file) => String(file.path).split("/").at(-1);

function figure(file) {
  const name = nameOf(file);
  const image = el("img", { alt: `Figure ${name}`, class: "figure" });
  const box = el("figure", {}, image, el("figcaption", {}, name));
  objectUrl(file).then(
    (url) => (image.src = url),
    () => image.replaceWith(el("p", { class: "hint" }, `${name} is not available any more.`)),
  );
  return box;
}

/** Figures are fetched with the API key, which the address of an image can't have. */
function objectUrl(file) {
  const url = String(file.url);
  if (!contents.has(url)) {
    const loading = fetchContent(url).then((blob) => URL.createObjectURL(new Blob([blob], { type: file.media_type })));
    loading.catch(() => contents.delete(url));
    contents.set(url, loading);
  }
  return contents.get(url);
}

function fileList(online, files) {
  if (files.length === 0) return [];
  const items = online.length
    ? online.map((file) => download(file))
    : files.map((file) => el("span", { class: "file" }, `${nameOf(file)} · ${bytesText(file.bytes ?? 0)}`));
  return [el("ul", { class: "files", "aria-label": "Files that the code wrote" }, ...items.map((item) => el("li", {}, item)))];
}

function download(file) {
  const name = nameOf(file);
  const label = `↓ ${name} · ${bytesText(file.bytes ?? 0)}`;
  const link = button(label, async () => {
    try {
      saveBlob(await fetchContent(String(file.url)), name);
      announce(`${name} downloaded.`);
    } catch (error) {
      link.textContent = error instanceof UserError ? `${name}: ${error.message}` : label;
      announce(link.textContent);
    }
  }, { class: "file", title: `Download ${file.path}` });
  return link;
}

function skipped(entries) {
  return entries.map(({ path, reason }) => el("p", { class: "hint" }, `Not kept: ${path} (${reason})`));
}

/** Calls of tools by the code, with arguments and results. */
function calls(list) {
  if (list.length === 0) return [];
  return [el("ul", { class: "calls", "aria-label": "Calls of tools by the code" }, ...list.map(callItem))];
}

function callItem(call) {
  const given = Object.entries(call.arguments ?? {}).map(([name, value]) => `${name}=${JSON.stringify(value)}`);
  const result = call.status === "ok" ? JSON.stringify(call.output) : (call.error ?? call.status);
  const time = call.finished_at ? milliseconds((call.finished_at - call.started_at) * 1000) : "";
  return el(
    "li",
    { "data-state": call.status === "ok" ? "done" : "error" },
    el("code", {}, `${call.name}(${given.join(", ")})`),
    el("span", { class: "result" }, ` → ${result}`),
    el("span", { class: "took" }, time),
  );
}
