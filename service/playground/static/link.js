// An episode in the fragment of an address: JSON, deflated, base64url. Browsers send a fragment to no server.
import { checked } from "./episode.js";

const KEY = "#e=";
const MOST_BYTES = 8 * 2 ** 20; // a small link may inflate to anything

/** The fragment that holds `episode`. */
export async function toFragment(episode) {
  const bytes = new TextEncoder().encode(JSON.stringify(episode));
  const packed = await collect(new Blob([bytes]).stream().pipeThrough(new CompressionStream("deflate-raw")));
  let text = "";
  for (let at = 0; at < packed.length; at += 8192) text += String.fromCharCode(...packed.subarray(at, at + 8192));
  return KEY + btoa(text).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
}

export const holdsEpisode = (fragment) => fragment.startsWith(KEY);

/** The episode in a fragment; throws if there is none that can be shown. */
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
    if ((size += value.length) > MOST_BYTES) {
      reader.cancel().catch(() => {}); // not waited for: it may never come
      throw new Error("too large");
    }
  }
}
