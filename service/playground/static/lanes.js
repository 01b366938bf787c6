// Lanes of an episode over time, in ms since the question. service/cli/timeline.py draws the same lanes.
import { duration, flushes, isSettled } from "./episode.js";

export const MIN_CONTAINER_WAIT_MS = 10; // shorter waits are the time to hand over a block

/** Return {lanes, totals, flushed} up to `now`. A lane is {name, spans, thread, marks}. */
export function lanesOf(episode, now = duration(episode)) {
  const since = (unix) => Math.max((unix - (episode.began ?? unix)) * 1000, 0);
  const tools = flushes(episode.events).map((tool) => timed(tool, since, now));
  const first = episode.events[0]?.[0] ?? now;
  const lanes = [writing(first, now, tools), container(tools), ...tools.flatMap((tool) => tool.lanes), ...calling(tools), waiting(tools)];
  for (const lane of lanes) {
    lane.spans = lane.spans
      .filter(({ start }) => start < now)
      .map((span) => ({ ...span, end: Math.max(Math.min(span.end, now), span.start) }));
    if (lane.thread) lane.thread = [lane.thread[0], Math.min(lane.thread[1], now)];
    lane.marks = (lane.marks ?? []).filter((mark) => mark <= now);
  }
  const shown = lanes.filter((lane) => lane.spans.length || (lane.thread && lane.thread[0] < now));
  return { lanes: numbered(shown), totals: totalsOf(tools, now >= duration(episode) ? Infinity : now, lanes[0]), flushed: tools.map((tool) => tool.requested).filter((at) => at < now) };
}

/** A flush with its times in ms: `requested` by the marker, `delivered` to the model. */
function timed(tool, since, now) {
  const settled = isSettled(tool);
  const requested = settled ? since(tool.flushed_at) : (tool.running ?? Infinity);
  const delivered = settled ? requested + tool.waited_ms : now;
  // Until its flush has ended, only the time at which a block arrived is known.
  const invoked = tool.blocks.map((block) => (block.invoked_at ? since(block.invoked_at) : (block.ms ?? 0)));
  const runs = (tool.runs ?? []).map((run) => ({ start: since(run.started_at), end: since(run.finished_at), kind: "run" }));
  if (settled && tool.status !== "ok" && runs.length) runs.at(-1).kind = "failed";
  const waited = tool.container_wait_ms >= MIN_CONTAINER_WAIT_MS;
  const leased = waited ? Math.min(invoked[0] + tool.container_wait_ms, delivered) : null; // time of its container
  const calls = (tool.calls ?? []).map((call) => ({
    name: `${call.name}()`,
    span: { start: since(call.started_at), end: call.finished_at === null ? delivered : since(call.finished_at), kind: call.status === "ok" ? "call" : "failed" },
  }));
  return { tool, settled, requested, delivered, invoked, leased, calls, lanes: blockLanes(tool, invoked, runs, delivered) };
}

/** One lane per block, or one for all blocks that ran as one script. */
function blockLanes(tool, invoked, runs, delivered) {
  const count = tool.blocks.length;
  if (count > 1 && runs.length === 1) return [{ count, spans: runs, thread: [invoked[0], delivered] }];
  return tool.blocks.map((_, at) => ({ count: 1, spans: runs.slice(at, at + 1), thread: [invoked[at], delivered] }));
}

function writing(first, now, tools) {
  const spans = [];
  let start = first;
  for (const tool of tools) {
    if (tool.requested > now) break;
    spans.push({ start, end: tool.requested, kind: "write" });
    start = tool.delivered;
  }
  if (tools.every((tool) => tool.settled || tool.requested === Infinity)) spans.push({ start, end: now, kind: "write" });
  return { name: "writes", spans, marks: tools.flatMap((tool) => tool.invoked) };
}

function waiting(tools) {
  const spans = tools
    .filter((tool) => tool.requested !== Infinity)
    .flatMap(({ requested, delivered, leased }) => {
      const from = Math.max(requested, leased ?? requested);
      const rest = { start: from, end: delivered, kind: "wait" };
      return from > requested ? [{ start: requested, end: from, kind: "container" }, rest] : [rest];
    });
  return { name: "waits", spans };
}

/** Calls of tools by code, one lane per tool. */
function calling(tools) {
  const calls = tools.flatMap((tool) => tool.calls);
  const names = [...new Set(calls.map(({ name }) => name))];
  return names.map((name) => ({ name, spans: calls.filter((call) => call.name === name).map(({ span }) => span) }));
}

/** Waits of first blocks for a container, which are neither writing nor running time. */
function container(tools) {
  const spans = tools
    .filter(({ leased }) => leased !== null)
    .map(({ invoked, leased }) => ({ start: invoked[0], end: leased, kind: "container" }));
  return { name: "container", spans };
}

function numbered(lanes) {
  let number = 1;
  for (const lane of lanes) {
    if (!lane.count) continue;
    lane.name = lane.count === 1 ? `block ${number}` : `blocks ${number}–${number + lane.count - 1}`;
    number += lane.count;
  }
  return lanes;
}

/** Sums up to `now`. It is Infinity at the end, because the clocks of server and browser differ. */
function totalsOf(tools, now, writes) {
  const seen = tools.filter((tool) => tool.settled && tool.delivered <= now + 1).map(({ tool }) => tool);
  const sum = (name) => seen.reduce((total, tool) => total + (tool[name] ?? 0), 0);
  const written = writes.spans.reduce((total, { start, end }) => total + end - start, 0);
  const [ran, waited, hidden, container] = ["wall_ms", "waited_ms", "hidden_ms", "container_wait_ms"].map(sum);
  return { written, ran, waited, hidden, container, delayed: sum("delayed"), executed: seen.reduce((n, tool) => n + tool.blocks.length, 0) };
}
