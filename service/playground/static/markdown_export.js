// Answers and conversations as Markdown.
import { segmentsOf } from "./segments.js";

const fence = (text, language) => {
  const marks = "`".repeat(Math.max(3, ...(text.match(/`+/g) ?? []).map((run) => run.length + 1)));
  return `${marks}${language}\n${text.replace(/\n$/, "")}\n${marks}`;
};

const PARTS = {
  text: ({ text }) => text.trim(),
  thinking: ({ text }) => text.trim().replace(/^/gm, "> "),
  code: ({ text }) => fence(text, "python"),
  marker: () => "",
  observation: ({ text }) => fence(text, "output"),
};

/** Return an answer with its code and outputs. */
export function answerText(episode) {
  const parts = segmentsOf(episode.events, { over: true }).map((segment) => PARTS[segment.kind](segment));
  return parts.filter(Boolean).join("\n\n");
}

/** Return a conversation, given as its title and the turns of one branch. */
export function conversationText(title, turns) {
  const parts = turns.flatMap((turn) => ["## Question", turn.question, "## Answer", turn.episode ? answerText(turn.episode) : "", turn.error ? `*${turn.error}*` : ""]);
  return `# ${title}\n\n${parts.filter(Boolean).join("\n\n")}\n`;
}
