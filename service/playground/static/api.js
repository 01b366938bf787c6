// The two routes that the page uses, and their failures in words.
import { readEvents } from "./sse.js";

/** A failure to show. `wantsKey` where a key would help. */
export class Problem extends Error {
  constructor(message, { wantsKey = false } = {}) {
    super(message);
    this.wantsKey = wantsKey;
  }
}

/** The models that the server has. */
export async function listModels(key) {
  return (await (await request("v1/models", { headers: headers(key) })).json()).data;
}

/** The chunks of a streamed chat completion. Aborting `signal` ends it at the server too. */
export async function* streamChat(body, key, signal) {
  const options = { stream: true, stream_options: { include_usage: true } };
  const response = await request("v1/chat/completions", {
    method: "POST",
    headers: { ...headers(key), "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, ...options }),
    signal,
  });
  let ended = false;
  try {
    for await (const chunk of readEvents(response.body)) {
      if (chunk.error) throw new Problem(sentence(chunk.error.message));
      ended ||= chunk.choices.some((choice) => choice.finish_reason);
      yield chunk;
    }
  } catch (error) {
    if (error instanceof Problem || signal.aborted) throw error;
    throw new Problem("The connection broke. What came until then is kept.");
  }
  if (!ended) throw new Problem("The server ended the stream before the episode was over. What came is kept.");
}

const headers = (key) => (key ? { Authorization: `Bearer ${key}` } : {});

async function request(path, options) {
  let response;
  try {
    response = await fetch(new URL(path, document.baseURI), { ...options, credentials: "omit", cache: "no-store" });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Problem("The server can't be reached. Is it still running?");
  }
  if (response.ok) return response;
  const said = await response.json().then((body) => body.error.message, () => `It answered ${response.status}.`);
  if (response.status === 401) {
    throw new Problem(`This server wants an API key: ${sentence(said)} Put one under Settings.`, { wantsKey: true });
  }
  if (response.status === 429) {
    const wait = response.headers.get("retry-after");
    throw new Problem(`The server is busy. ${sentence(said)}${wait ? ` Try again in ${wait} s.` : ""}`);
  }
  throw new Problem(sentence(said));
}

const sentence = (text) => (/[.!?]$/.test(text) ? text : `${text}.`);
