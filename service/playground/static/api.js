// Client of the two API routes that the page uses, with readable errors.
import { readEvents } from "./sse.js";

/** An error to show to the user. `needsKey` is true if an API key would help. */
export class UserError extends Error {
  constructor(message, { needsKey = false } = {}) {
    super(message);
    this.needsKey = needsKey;
  }
}

/** List the server's models. */
export async function listModels(key) {
  return (await (await request("v1/models", { headers: headers(key) })).json()).data;
}

/** Yield the chunks of a streamed chat completion. Aborting `signal` also stops it on the server. */
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
      if (chunk.error) throw new UserError(sentence(chunk.error.message));
      ended ||= chunk.choices.some((choice) => choice.finish_reason);
      yield chunk;
    }
  } catch (error) {
    if (error instanceof UserError || signal.aborted) throw error;
    throw new UserError("The connection was lost. The text received so far is kept.");
  }
  if (!ended) throw new UserError("The server closed the stream before the episode ended. The text received so far is kept.");
}

const headers = (key) => (key ? { Authorization: `Bearer ${key}` } : {});

async function request(path, options) {
  let response;
  try {
    response = await fetch(new URL(path, document.baseURI), { ...options, credentials: "omit", cache: "no-store" });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new UserError("The server is not reachable. Check that it is running.");
  }
  if (response.ok) return response;
  const message = await response.json().then((body) => body.error.message, () => `The server returned status ${response.status}.`);
  if (response.status === 401) {
    throw new UserError(`This server requires an API key: ${sentence(message)} Enter one under Settings.`, { needsKey: true });
  }
  if (response.status === 429) {
    const wait = response.headers.get("retry-after");
    throw new UserError(`The server is busy. ${sentence(message)}${wait ? ` Try again in ${wait} s.` : ""}`);
  }
  throw new UserError(sentence(message));
}

const sentence = (text) => (/[.!?]$/.test(text) ? text : `${text}.`);
