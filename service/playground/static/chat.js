// The open conversation: asks questions, shows answers while they grow, and stores them.
import { UserError, decideCall, storedResponse, streamResponse } from "./api.js";
import { addTurn, branch, chooseBranch, loadConversation, newConversation, saveConversation } from "./conversations.js";
import { announce, byId } from "./dom.js";
import { newEpisode } from "./episode.js";
import { MARKER } from "./parse.js";
import { ResponseReader, storedTurn } from "./responses.js";
import { Thread } from "./thread.js";

const TRIES = 4; // a response that was just stopped is stored a moment later
const HISTORY_LOST = "The server no longer has the earlier answers, so the conversation was sent again as text. Variables and files of its code are gone.";

export class Chat {
  /** `hooks`: fail(error), busy(flag), changed(), which is called if the list or the open conversation changed. */
  constructor(settings, hooks, { online = true } = {}) {
    this.settings = settings;
    this.hooks = hooks;
    this.conversation = newConversation();
    this.run = null; // {conversation, turn, answer, stop, reader, decided}
    this.thread = new Thread(
      online && {
        edit: (turn, question) => this.ask(question, { parent: turn.parent, files: turn.files }),
        regenerate: (turn) => this.ask(turn.question, { parent: turn.parent, files: turn.files }),
        retry: (turn) => this.ask(turn.question, { parent: turn.parent, files: turn.files }),
        decide: (turn, call, approve) => this.decide(turn, call, approve),
        choose: (turn) => {
          chooseBranch(this.conversation, turn);
          this.save();
          this.show();
        },
      },
      online,
    );
  }

  /** Open a stored conversation by id. Returns whether it exists. */
  open(id) {
    const running = this.run?.conversation;
    const conversation = running?.id === id ? running : loadConversation(id);
    if (conversation) this.show(conversation);
    return Boolean(conversation);
  }

  /** Show `conversation`, by default the open one. */
  show(conversation = this.conversation) {
    this.conversation = conversation;
    this.thread.show(conversation, this.run?.turn);
    if (this.run) this.run.answer = this.thread.answers.get(this.run.turn.id) ?? null;
    this.hooks.changed();
  }

  /** Ask `question` after the turn `parent`, by default the last one. Returns whether it was sent. */
  ask(question, { parent = this.conversation.leaf, files = [] } = {}) {
    if (this.run) return announce("Wait for the answer, or stop it."), false;
    if (!this.settings.check()) return false;
    const { conversation } = this;
    const isBranch = parent !== conversation.leaf;
    const request = this.settings.request(question, files);
    const turn = addTurn(conversation, { parent, question, files, episode: newEpisode(request) });
    const earlier = branch(conversation, parent);
    Object.assign(request, continued(request, earlier));
    this.run = { conversation, turn, answer: null, stop: new AbortController(), reader: new ResponseReader(turn), decided: [] };
    if (isBranch) this.show();
    else {
      this.run.answer = this.thread.add(conversation, turn, true);
      this.hooks.changed();
    }
    this.hooks.busy(true);
    announce("Question sent.");
    this.save(conversation);
    this.answer(this.run, earlier);
    return true;
  }

  async answer(run, earlier) {
    const { turn, stop, reader } = run;
    const began = performance.now();
    const elapsed = () => performance.now() - began;
    const animation = animate(() => run.answer?.grow(elapsed()));
    try {
      for await (const event of this.events(run, earlier)) {
        reader.receive(event, elapsed());
        if (reader.news) announce(reader.news);
        reader.news = null;
        if (turn.episode.events.length) run.answer?.describe("writing");
      }
    } catch (error) {
      if (stop.signal.aborted) turn.episode.finish = "stopped";
      else this.fail(turn, error);
    }
    animation.stop();
    turn.episode.ended = elapsed();
    this.run = null;
    run.answer?.grow(turn.episode.ended, true);
    run.answer?.announceEnd();
    run.conversation.updated = Date.now();
    this.save(run.conversation);
    this.hooks.busy(false);
    this.hooks.changed();
  }

  /** Yield the events of the answer. Code that waits for decisions continues in another response. */
  async *events(run, earlier) {
    const { turn, reader, stop } = run;
    yield* this.firstEvents(turn, earlier, stop.signal);
    while (reader.suspended) {
      run.answer?.describe("waiting for your approval");
      const input = await this.decisions(run);
      yield* streamResponse({ ...turn.episode.request, previous_response_id: turn.responseId, input }, stop.signal);
    }
  }

  /** Wait until the user has decided about all open calls, and return the decisions as input items. */
  async decisions({ reader, decided, stop }) {
    while (reader.open.length > 0) {
      await new Promise((resolve) => setTimeout(resolve, 100));
      stop.signal.throwIfAborted();
    }
    return decided.splice(0).map(({ id, approve }) => ({ type: "mcp_approval_response", approval_request_id: id, approve }));
  }

  /** Approve or deny a call of code. A response that runs is notified immediately; one that was suspended is
   *  continued with the decision. */
  async decide(turn, { id }, approve) {
    const run = this.run;
    if (run?.turn !== turn) return;
    try {
      if (!run.reader.suspended) await decideCall(turn.responseId, id, approve);
    } catch (error) {
      if (!run.reader.suspended) return this.hooks.fail(error); // it may have been suspended in between
    }
    const now = turn.episode.events.at(-1)[0];
    turn.episode.events.push([now, "a", { id, state: approve ? "approved" : "denied", by: "client" }]);
    run.decided.push({ id, approve });
  }

  /** Yield the events of the first response. If the server has lost the earlier answers, they are sent again as text. */
  async *firstEvents(turn, earlier, signal) {
    const { request } = turn.episode;
    for (let attempt = 1; ; attempt++) {
      try {
        return yield* streamResponse(request, signal);
      } catch (error) {
        if (error.code !== "previous_response_not_found") throw error;
        if (earlier.at(-1).episode.finish === "stopped" && attempt < TRIES) {
          await new Promise((resolve) => setTimeout(resolve, 250));
          continue;
        }
        delete request.previous_response_id;
        request.input.unshift(...asMessages(earlier));
        turn.notice = HISTORY_LOST;
      }
    }
  }

  fail(turn, error) {
    if (!(error instanceof UserError)) console.error(error);
    turn.error = error instanceof UserError ? error.message : `Internal error of this page: ${error.message}`;
    if (error.needsKey) this.hooks.fail(error);
  }

  stop() {
    this.run?.stop.abort();
  }

  /** Store a conversation that has at least one question. Conversations from links are stored once they continue. */
  save(conversation = this.conversation) {
    if (conversation.turns.length === 0) return;
    const removed = saveConversation(conversation);
    if (removed.length) this.hooks.fail(new UserError(`The browser's storage is full. The oldest conversations were deleted: ${removed.join(", ")}.`));
  }

  /** Open a response that the server has stored, with the answers before it. */
  async openStored(id) {
    const turns = [];
    for (let next = id; next; ) {
      const stored = await storedResponse(next);
      turns.unshift(storedTurn(stored));
      next = stored.response.previous_response_id;
    }
    const conversation = newConversation();
    for (const turn of turns) addTurn(conversation, { ...turn, parent: conversation.leaf });
    this.save(conversation);
    this.show(conversation);
  }

  /** Show an episode of a link or of a standalone page, and return its answer. It is not stored. */
  showEpisode(episode, question) {
    const conversation = newConversation();
    addTurn(conversation, { parent: null, question, episode });
    this.show(conversation);
    return this.thread.current();
  }
}

/** Fields of a request that continues from the turns `earlier`. */
function continued(request, earlier) {
  const last = earlier.findLast(({ responseId }) => responseId);
  const since = last ? earlier.slice(earlier.indexOf(last) + 1) : earlier;
  return {
    ...(last ? { previous_response_id: last.responseId } : {}),
    input: [...asMessages(since.filter(({ episode }) => episode?.events.length)), ...request.input],
  };
}

/** Questions and answers as messages. Code is part of the text, outputs are not. */
function asMessages(turns) {
  return turns.flatMap(({ question, episode }) => {
    const text = episode.events.filter(([, kind]) => kind === "t").map(([, , value]) => value).join("");
    return [{ role: "user", content: question }, { role: "assistant", content: text.replaceAll(MARKER, "\n") }];
  });
}

/** Call `step` before each repaint until stopped. */
function animate(step) {
  let active = true;
  const loop = () => {
    if (!active) return;
    step();
    requestAnimationFrame(loop);
  };
  requestAnimationFrame(loop);
  return { stop: () => (active = false) };
}
