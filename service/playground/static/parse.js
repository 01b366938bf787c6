// Parse a turn's text into prose, Python blocks and execute markers, by the rules of service/deferral/scanner.py.
// The text may end anywhere, because it is still being written.

const FENCE = "```";
export const MARKER = "<tool_call>";

/** Return the segments of a turn: {kind: "text" | "code" | "marker", text, closed}. */
export function parseTurn(text) {
  const segments = [];
  let state = "text";
  let indent = 0;
  const add = (kind, part) => {
    const last = segments.at(-1);
    if (last?.kind === kind && !last.closed) last.text += part;
    else segments.push({ kind, text: part, closed: kind === "marker" });
  };
  const prose = (part) => {
    const pieces = part.split(MARKER);
    pieces.forEach((piece, at) => {
      if (at > 0) add("marker", MARKER);
      if (piece) add("text", piece);
    });
  };
  for (const line of text.match(/[^\n]*\n|[^\n]+$/g) ?? []) {
    const whole = line.endsWith("\n");
    const bare = line.replace(/^[ \t]+/, "");
    if (state === "code") {
      if (bare.startsWith(FENCE)) {
        segments.at(-1).closed = true;
        state = "text";
        prose(bare.slice(FENCE.length));
      } else if (whole || !FENCE.startsWith(bare)) {
        add("code", line.slice(Math.min(line.length - bare.length, indent)));
      }
      continue;
    }
    if (bare.startsWith(FENCE)) {
      if (!whole) continue; // its language is not known yet
      const info = bare.slice(FENCE.length).trim().toLowerCase();
      if (info === "python" || info === "py") {
        indent = line.length - bare.length;
        segments.push({ kind: "code", text: "", closed: false });
        state = "code";
        continue;
      }
      if (state === "other") state = "text";
      else if (!info.includes("`") && !info.includes(MARKER)) state = "other";
      add("text", line);
    } else if (state === "other") add("text", line);
    else prose(whole ? line : certainPart(line));
  }
  return segments;
}

/** Return the certain part of an unfinished line, which may become a fence or a marker. */
function certainPart(line) {
  if (FENCE.startsWith(line.replace(/^[ \t]+/, ""))) return "";
  for (let size = MARKER.length - 1; size > 0; size--) {
    if (line.endsWith(MARKER.slice(0, size))) return line.slice(0, -size);
  }
  return line;
}
