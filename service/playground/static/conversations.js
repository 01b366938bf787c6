// Conversations: trees of turns, kept in the browser's storage. Editing or asking again adds a branch.
//   turn: {id, parent, question, files: [{id, name}], episode, responseId, notice, answer, error}

import { lasting } from "./storage.js";

const PREFIX = "ih-grpo.conversation.";
const TITLE_LENGTH = 60;

export const newId = () => crypto.randomUUID?.() ?? `${Date.now().toString(36)}-${Math.random().toString(36).slice(2)}`;

/** Start a conversation. It is stored with its first question. */
export const newConversation = () => ({ id: newId(), title: "", created: Date.now(), updated: Date.now(), turns: [], leaf: null });

/** Add a turn after `parent` (its id, or null) and continue from it. */
export function addTurn(conversation, { parent, ...fields }) {
  const turn = { id: newId(), parent, files: [], episode: null, responseId: null, notice: null, answer: null, error: null, ...fields };
  conversation.turns.push(turn);
  conversation.leaf = turn.id;
  conversation.title ||= titleOf(turn.question);
  return turn;
}

const titleOf = (question) => {
  const line = question.trim().split("\n")[0];
  return line.length > TITLE_LENGTH ? `${line.slice(0, TITLE_LENGTH - 1)}…` : line;
};

const find = (conversation, id) => conversation.turns.find((turn) => turn.id === id);

/** The turns from the first one to `leaf`. */
export function branch(conversation, leaf = conversation.leaf) {
  const turns = [];
  for (let turn = find(conversation, leaf); turn; turn = find(conversation, turn.parent)) turns.unshift(turn);
  return turns;
}

/** The alternatives of `turn`, itself included, in order. */
export const siblings = (conversation, turn) => conversation.turns.filter(({ parent }) => parent === turn.parent);

/** Continue from the newest turn under `turn`. */
export function chooseBranch(conversation, turn) {
  let leaf = turn;
  for (let next = turn; next; next = conversation.turns.findLast(({ parent }) => parent === leaf.id)) leaf = next;
  conversation.leaf = leaf.id;
}

/** All stored conversations, the most recently used first. */
export function listConversations() {
  const found = [];
  for (let at = 0; at < lasting.length; at++) {
    const key = lasting.key(at);
    if (key.startsWith(PREFIX)) found.push(parsed(lasting.getItem(key)));
  }
  return found.filter(Boolean).sort((a, b) => b.updated - a.updated);
}

export const loadConversation = (id) => parsed(lasting.getItem(PREFIX + id));

function parsed(text) {
  try {
    const value = JSON.parse(text);
    return value && Array.isArray(value.turns) ? value : null;
  } catch {
    return null;
  }
}

/** Store a conversation. Returns the titles of older ones that had to be removed, because the storage is full. */
export function saveConversation(conversation) {
  const removed = [];
  for (;;) {
    try {
      lasting.setItem(PREFIX + conversation.id, JSON.stringify(conversation));
      return removed;
    } catch {
      const oldest = listConversations().findLast(({ id }) => id !== conversation.id);
      if (!oldest) return removed; // private windows may have no storage; nothing is kept then
      lasting.removeItem(PREFIX + oldest.id);
      removed.push(oldest.title);
    }
  }
}

export const deleteConversation = (id) => lasting.removeItem(PREFIX + id);

export const isConversationKey = (key) => key === null || key.startsWith(PREFIX);
