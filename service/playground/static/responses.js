// Turns the events of the Responses API into events of an episode. New kinds of events are added to HANDLERS.
import { UserError } from "./api.js";
import { addText, approvals, newEpisode, observation } from "./episode.js";
import { MARKER } from "./parse.js";

const FINISH = { completed: "stop", incomplete: "length", cancelled: "stopped" };

/** Adds events of one streamed response to `turn` and its episode. */
export class ResponseReader {
  constructor(turn) {
    this.turn = turn;
    this.episode = turn.episode;
    this.tools = new Map(); // flushes that have not ended, by the id of their item
    this.news = null; // the latest change, in words for screen readers
    this.suspended = false; // the response ended because code waits for decisions
    this.waiting = []; // flushes that the next response continues, under other ids
  }

  /** The calls that wait for the user's decision. */
  get open() {
    return approvals(this.episode.events).filter(({ state }) => state === "open");
  }

  /** Add `event`, which arrived `ms` after the question. */
  receive(event, ms) {
    HANDLERS[event.type]?.(this, event, ms);
  }

  snapshot(tool, ms) {
    this.episode.events.push([ms, "b", { ...tool, blocks: [...tool.blocks] }]);
    this.news = `${tool.blocks.length} block${tool.blocks.length === 1 ? "" : "s"} ${tool.status}.`;
  }

  end({ response }) {
    this.suspended = Boolean(response.suspended);
    this.waiting = [...this.tools.values()];
    this.tools.clear();
    this.episode.finish = FINISH[response.status] ?? null;
    if (response.incomplete_details?.reason === "max_messages") this.episode.finish = "turns";
    this.episode.usage = response.usage && { completion_tokens: response.usage.output_tokens };
    this.turn.notice = response.notice ?? this.turn.notice;
    this.turn.answer = response.final_answer ?? null;
    if (response.error) throw new UserError(/[.!?]$/.test(response.error.message) ? response.error.message : `${response.error.message}.`);
  }
}

const HANDLERS = {
  "response.created": (reader, event) => (reader.turn.responseId = event.response.id),
  "response.output_text.delta": (reader, event, ms) => addText(reader.episode, ms, "t", event.delta),
  "response.reasoning_text.delta": (reader, event, ms) => addText(reader.episode, ms, "r", event.delta),
  "response.output_item.added"(reader, { item }) {
    if (item.type !== "code_interpreter_call") return;
    const earlier = reader.waiting.shift();
    reader.tools.set(item.id, earlier ? { ...earlier, isContinued: true } : { id: item.id, status: "pending", blocks: [] });
  },
  "response.code_interpreter_call_code.delta"(reader, event, ms) {
    const tool = reader.tools.get(event.item_id);
    if (tool.isContinued) return;
    tool.blocks.push({ code: tool.blocks.length ? event.delta.slice(1) : event.delta, ms });
    reader.snapshot(tool, ms);
  },
  "response.code_interpreter_call.interpreting"(reader, event, ms) {
    const tool = reader.tools.get(event.item_id);
    if (tool.isContinued) return;
    tool.status = "running";
    addText(reader.episode, ms, "t", MARKER);
    reader.snapshot(tool, ms);
  },
  "ih_grpo:code_interpreter_call_output.delta"(reader, event, ms) {
    const last = reader.episode.events.at(-1);
    const { id } = reader.tools.get(event.item_id);
    const fits = last?.[1] === "l" && last[2].id === id && last[2].attempt === event.attempt;
    const text = (event.truncated ? "\n… output left out …\n" : "") + event.delta;
    if (fits && ms - last[0] < 100) last[2].text += text;
    else reader.episode.events.push([ms, "l", { id, text, attempt: event.attempt }]);
  },
  "ih_grpo:mcp_approval_request.decided"(reader, { item_id, approve, decided_by }, ms) {
    reader.episode.events.push([ms, "a", { id: item_id, state: approve ? "approved" : "denied", by: decided_by }]);
  },
  "response.output_item.done"(reader, { item }, ms) {
    if (item.type === "mcp_approval_request") {
      reader.episode.events.push([ms, "a", { id: item.id, server: item.server_label, name: item.name, arguments: item.arguments, state: "open" }]);
      reader.news = `${item.name} of ${item.server_label} needs your approval.`;
    }
    const tool = reader.tools.get(item.id);
    if (!tool || !item.execution) return;
    reader.tools.delete(item.id);
    align(reader.episode, tool.blocks, item.execution.blocks);
    reader.snapshot({ ...item.execution, id: tool.id }, ms);
    reader.episode.events.push([ms, "o", observation(item.execution.output)]);
  },
  "response.completed": (reader, event) => reader.end(event),
  "response.incomplete": (reader, event) => reader.end(event),
  "response.failed": (reader, event) => reader.end(event),
};

/** A block is announced right after it was invoked, so the smallest difference is that of the two clocks. */
function align(episode, arrived, invoked) {
  invoked.forEach((block, at) => {
    if (arrived[at]) episode.began = Math.max(episode.began ?? 0, block.invoked_at - arrived[at].ms / 1000);
  });
}

/** Rebuild the turn of a stored response. The times of its words are not stored, only those of its code. */
export function storedTurn({ response, input }) {
  const messages = input.filter(({ type, role }) => type === "message" && role === "user");
  const parts = messages.flatMap(({ content }) => content);
  const question = parts.map(({ text }) => text ?? "").join("");
  const files = parts.filter(({ type }) => type === "input_file").map((part) => ({ id: part.file_id, name: part.filename ?? "file" }));
  const episode = newEpisode({ model: response.model, input: [{ role: "user", content: question }] });
  const tools = response.output.map(({ execution }) => execution).filter(Boolean);
  episode.created = response.created_at * 1000;
  episode.began = Math.min(response.created_at, ...tools.flatMap(({ blocks }) => blocks.map((block) => block.invoked_at)));
  const since = (unix) => Math.max((unix - episode.began) * 1000, 0);
  let now = 0;
  response.output.forEach((item, at) => {
    const next = response.output.slice(at).find(({ execution }) => execution)?.execution;
    if (item.type === "message" || item.type === "reasoning") {
      const text = item.content.map((part) => part.text).join("");
      if (next) now = since(next.blocks[0].invoked_at);
      addText(episode, now, item.type === "message" ? "t" : "r", text);
    } else if (item.execution) {
      addText(episode, since(next.flushed_at), "t", MARKER);
      episode.events.push([since(next.flushed_at), "b", { ...next, id: item.id, status: "running" }]);
      now = since(next.flushed_at) + next.waited_ms;
      episode.events.push([now, "b", { ...next, id: item.id }], [now, "o", observation(next.output)]);
    }
  });
  episode.ended = Math.max(now, response.completed_at ? since(response.completed_at) : 0);
  episode.finish = FINISH[response.status] ?? null;
  episode.usage = response.usage && { completion_tokens: response.usage.output_tokens };
  return { question, files, episode, responseId: response.id, notice: response.notice ?? null, answer: response.final_answer ?? null };
}
