// Convert an episode's events to the segments that the page shows.
import { approvals, flushes, isSettled, observed } from "./episode.js";
import { parseTurn } from "./parse.js";

/** Return segments in order: text, thinking, code (with `number`, `state` and `note`), marker, observation.
 *  The output of code that still runs is an observation with `live`. */
export function segmentsOf(events, { over = false } = {}) {
  const segments = [];
  let turn = "";
  let thinking = null;
  let flush = null;
  let live = null;
  const calls = new Map(approvals(events).map((call) => [call.id, call]));
  let asked = []; // the calls of the current flush that need approval
  const endTurn = () => {
    segments.push(...parseTurn(turn));
    turn = "";
    thinking = null;
  };
  for (const [, kind, value] of events) {
    if (kind === "t") turn += value;
    else if (kind === "b") flush = isSettled(value) ? value : null;
    else if (kind === "a") {
      if (value.name) asked.push(calls.get(value.id));
    } else if (kind === "l") {
      // The blocks of a second attempt run again from the start.
      const isNew = live?.id !== value.id || live.attempt !== value.attempt;
      live = { id: value.id, attempt: value.attempt, text: (isNew ? "" : live.text) + value.text };
    } else if (kind === "o") {
      endTurn();
      live = null;
      segments.push(...asked.splice(0).map((call) => approval(call, true)));
      segments.push({ kind: "observation", text: observed(value), tool: flush });
      flush = null;
    } else {
      if (turn) endTurn();
      if (!thinking) segments.push((thinking = { kind: "thinking", text: "" }));
      thinking.text += value;
    }
  }
  endTurn();
  segments.push(...asked.map((call) => approval(call, over)));
  if (live?.text) segments.push({ kind: "observation", text: live.text, tool: null, live: true });
  nameBlocks(segments, flushes(events), over);
  return segments;
}

/** A call that needs approval. An undecided one of a finished answer has expired. */
function approval({ id, server, name, arguments: written, state, by }, over) {
  return { kind: "approval", id, server, name, text: written, state: state === "open" && over ? "expired" : state, by };
}

/** Set the state of each block: the n-th closed block is the n-th block of the flushes. */
function nameBlocks(segments, tools, over) {
  const states = tools.flatMap((tool) => tool.blocks.map((_, at) => blockState(tool, at, over)));
  let number = 0;
  for (const segment of segments) {
    if (segment.kind !== "code") continue;
    const unknown = over ? { state: "idle", note: "did not run" } : { state: "writing", note: "being written" };
    Object.assign(segment, (segment.closed && states[number]) || unknown, { number: ++number });
  }
}

function blockState(tool, at, over) {
  if (!isSettled(tool)) {
    if (over) return { state: "idle", note: "never ran" };
    return { state: tool.status, note: tool.status };
  }
  if (tool.status !== "ok") return { state: "error", note: tool.status.replace("_", " ") };
  const run = tool.runs?.length === tool.blocks.length ? tool.runs[at] : null;
  return { state: "done", note: run ? `ran ${milliseconds((run.finished_at - run.started_at) * 1000)}` : "ran" };
}

/** Format a duration: "8 ms", "0.50 s". */
export function milliseconds(ms) {
  if (ms === 0) return "0 ms";
  return ms < 100 ? `${ms < 9.95 ? ms.toFixed(1) : Math.round(ms)} ms` : `${(ms / 1000).toFixed(2)} s`;
}
