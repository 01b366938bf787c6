// Recorded episodes: a list of events [milliseconds since the question, kind, value].
//   "t" text of the model   "r" its thinking   "o" an observation   "b" a snapshot of a flush
//   "l" output of running code: {id, text, attempt}, with the id of its flush
//   "a" a call that needs approval: {id, server, name, arguments, state}, or its later state: {id, state, by}
// Links contain this format, so it must stay readable: change VERSION with its meaning.

export const VERSION = 1;
const MERGE_MS = 40;
// Includes the marker if the server wrote it. A fenced block if the model was not trained to defer.
const OBSERVATION = /^(?:<tool_call>)?\nCode execution result: ([^]*)\n<\/tool_call>\n$|^\n```output\n([^]*)\n```\n$/;

/** Start an episode now. `request` is the request's body. */
export function newEpisode(request) {
  return { v: VERSION, request, created: Date.now(), began: null, events: [], ended: null, finish: null, usage: null };
}

/** Add `text` of the model ("t") or of its thinking ("r"), which arrived `ms` after the question. */
export function addText(episode, ms, kind, text) {
  if (kind === "t" && OBSERVATION.test(text)) kind = "o";
  const last = episode.events.at(-1);
  if (last && last[1] === kind && kind !== "o" && ms - last[0] < MERGE_MS) last[2] += text;
  else episode.events.push([ms, kind, text]);
}

/** Return the event text of the output of a flush. */
export const observation = (output) => `\nCode execution result: ${output}\n</tool_call>\n`;

export const isSettled = (tool) => tool.status !== "pending" && tool.status !== "running";

/** The output in an observation, without the text around it. */
export function observed(text) {
  const parts = OBSERVATION.exec(text);
  return parts?.[1] ?? parts?.[2] ?? text.trim();
}

/** The flushes in `events`, each with its last snapshot, in order. `running` is the start of the wait in ms. */
export function flushes(events) {
  const found = new Map();
  for (const [ms, kind, tool] of events) {
    if (kind !== "b") continue;
    const running = tool.status === "running" ? ms : found.get(tool.id)?.running;
    found.set(tool.id, { ...tool, running });
  }
  return [...found.values()];
}

/** The calls in `events` that need approval, each with its last state, in order. */
export function approvals(events) {
  const found = new Map();
  for (const [, kind, value] of events) if (kind === "a") found.set(value.id, { ...found.get(value.id), ...value });
  return [...found.values()];
}

/** Duration of the episode in ms. */
export const duration = (episode) => episode.ended ?? episode.events.at(-1)?.[0] ?? 0;

/** The last question of the request, of the Responses API or of chat completions. */
export function questionOf({ request }) {
  const messages = request.messages ?? request.input;
  const content = messages.filter(({ role }) => role === "user").at(-1)?.content ?? "";
  return typeof content === "string" ? content : content.map((part) => part.text ?? "").join("");
}

/** Return `value` from a link if it is a valid episode; throw otherwise. */
export function checked(value) {
  const fits =
    value?.v === VERSION && Array.isArray(value.events) && typeof value.request === "object" && value.request !== null &&
    isMessages(value.request.messages ?? value.request.input) && isTime(value.ended) && isTime(value.began) &&
    value.events.every(isEvent);
  if (!fits) throw new Error("not an episode");
  return value;
}

const isMessages = (value) =>
  Array.isArray(value) &&
  value.every((message) => typeof message === "object" && message && (typeof message.content === "string" || isParts(message.content)));
const isParts = (value) => Array.isArray(value) && value.every((part) => typeof part === "object" && part);
const isTime = (value) => value === null || Number.isFinite(value);

function isEvent(event) {
  if (!Array.isArray(event) || !Number.isFinite(event[0])) return false;
  const [, kind, value] = event;
  if (kind === "l") return typeof value?.id === "string" && typeof value.text === "string";
  if (kind === "a") return typeof value?.id === "string" && typeof value.state === "string";
  if (kind !== "b") return ["t", "r", "o"].includes(kind) && typeof value === "string";
  return (
    typeof value?.id === "string" && typeof value.status === "string" && Array.isArray(value.blocks) &&
    value.blocks.every((block) => typeof block?.code === "string") &&
    ["runs", "files", "tables", "calls", "skipped_files"].every((name) => Array.isArray(value[name] ?? []))
  );
}
