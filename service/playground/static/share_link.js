// Episodes in the fragment of a URL: JSON, deflated, base64url. Browsers don't send fragments to servers.
import { checked } from "./episode.js";

const KEY = "#e=";
const MAX_BYTES = 8 * 2 ** 20; // bounds the inflated size

/** Encode `episode` as a fragment. */
export async function toFragment(episode) {
  const bytes = new TextEncoder().encode(JSON.stringify(episode));
  const packed = await collect(new Blob([bytes]).stream().pipeThrough(new CompressionStream("deflate-raw")));
  let text = "";
  for (let at = 0; at < packed.length; at += 8192) text += String.fromCharCode(...packed.subarray(at, at + 8192));
  return KEY + btoa(text).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
}

export const holdsEpisode = (fragment) => fragment.startsWith(KEY);

/** Decode the episode in a fragment. Throws if it is invalid. */
export async function fromFragment(fragment) {
  const text = atob(fragment.slice(KEY.length).replaceAll("-", "+").replaceAll("_", "/"));
  const bytes = Uint8Array.from(text, (char) => char.charCodeAt(0));
  const inflated = await collect(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw")));
  return checked(JSON.parse(new TextDecoder().decode(inflated)));
}

async function collect(stream) {
  const reader = stream.getReader();
  const parts = [];
  let size = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return new Uint8Array(await new Blob(parts).arrayBuffer());
    parts.push(value);
    if ((size += value.length) > MAX_BYTES) {
      reader.cancel().catch(() => {}); // not awaited: it may never settle
      throw new Error("too large");
    }
  }
}
