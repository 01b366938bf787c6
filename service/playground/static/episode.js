// Recorded episodes: a list of events [milliseconds since the question, kind, value].
//   "t" text of the model   "r" its thinking   "o" an observation   "b" a snapshot of a flush
// Links contain this format, so it must stay readable: change VERSION with its meaning.

export const VERSION = 1;
const MERGE_MS = 40;
// Includes the marker if the server wrote it. A fenced block if the model was not trained to defer.
const OBSERVATION = /^(?:<tool_call>)?\nCode execution result: ([^]*)\n<\/tool_call>\n$|^\n```output\n([^]*)\n```\n$/;

/** Start an episode now. `request` is the request's body. */
export function newEpisode(request) {
  return { v: VERSION, request, created: Date.now(), began: null, events: [], ended: null, finish: null, usage: null };
}

/** Add a streamed delta that arrived `ms` after the question. */
export function addDelta(episode, ms, delta) {
  const thought = delta.reasoning_content ?? delta.reasoning;
  if (thought) addText(episode, ms, "r", thought);
  if (delta.content) addText(episode, ms, isObservation(episode, delta.content) ? "o" : "t", delta.content);
  for (const tool of delta.executed_tools ?? []) {
    episode.events.push([ms, "b", tool]);
    // A block is announced right after it was invoked, so the smallest difference is that of the clocks.
    const invoked = tool.blocks.at(-1)?.invoked_at;
    if (tool.status === "pending" && invoked) episode.began = Math.max(episode.began ?? 0, invoked - ms / 1000);
  }
}

function addText(episode, ms, kind, text) {
  const last = episode.events.at(-1);
  if (last && last[1] === kind && kind !== "o" && ms - last[0] < MERGE_MS) last[2] += text;
  else episode.events.push([ms, kind, text]);
}

function isObservation(episode, text) {
  const last = episode.events.at(-1);
  return (last?.[1] === "b" && isSettled(last[2])) || OBSERVATION.test(text);
}

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

/** Duration of the episode in ms. */
export const duration = (episode) => episode.ended ?? episode.events.at(-1)?.[0] ?? 0;

/** Return `value` from a link if it is a valid episode; throw otherwise. */
export function checked(value) {
  const fits =
    value?.v === VERSION && Array.isArray(value.events) && typeof value.request === "object" && value.request !== null &&
    Array.isArray(value.request.messages) && isTime(value.ended) && isTime(value.began) && value.events.every(isEvent);
  if (!fits) throw new Error("not an episode");
  return value;
}

const isTime = (value) => value === null || Number.isFinite(value);

function isEvent(event) {
  if (!Array.isArray(event) || !Number.isFinite(event[0])) return false;
  const [, kind, value] = event;
  if (kind !== "b") return ["t", "r", "o"].includes(kind) && typeof value === "string";
  return (
    typeof value?.id === "string" && typeof value.status === "string" && Array.isArray(value.blocks) &&
    value.blocks.every((block) => typeof block?.code === "string") && Array.isArray(value.runs ?? [])
  );
}
