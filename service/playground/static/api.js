// Client of the API routes that the page uses, with readable errors.
import { byId } from "./dom.js";
import { readEvents } from "./sse.js";

const INCLUDE = ["code_interpreter_call.outputs", "code_interpreter_call.execution"];
const LAST = ["response.completed", "response.incomplete", "response.failed"];

/** An error to show to the user. `needsKey` is true if an API key would help; `code` is the server's. */
export class UserError extends Error {
  constructor(message, { needsKey = false, code = null } = {}) {
    super(message);
    this.needsKey = needsKey;
    this.code = code;
  }
}

/** The API key that the user entered, or "". */
export const apiKey = () => byId("key").value.trim();

/** List the server's models. */
export async function listModels() {
  return (await (await call("v1/models")).json()).data;
}

/** Yield the events of a streamed response. Aborting `signal` also stops it on the server. */
export async function* streamResponse(body, signal) {
  const live = body.tools ? { deferral: { ...body.deferral, live_output: true } } : {};
  const response = await call("v1/responses", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, ...live, stream: true, include: INCLUDE }),
    signal,
  });
  let ended = false;
  try {
    for await (const event of readEvents(response.body)) {
      const error = event.error ?? (event.type === "error" ? event : null);
      if (error) throw new UserError(sentence(error.message));
      ended ||= LAST.includes(event.type);
      yield event;
    }
  } catch (error) {
    if (error instanceof UserError || signal.aborted) throw error;
    throw new UserError("The connection was lost. The text received so far is kept.");
  }
  if (!ended) throw new UserError("The server closed the stream before the answer ended. The text received so far is kept.");
}

/** Decide about a call that needs approval, while the response runs. */
export async function decideCall(responseId, id, approve) {
  await call(`v1/responses/${encodeURIComponent(responseId)}/approvals`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ approval_request_id: id, approve }),
  });
}

/** Return a stored response and its input items. */
export async function storedResponse(id) {
  const path = `v1/responses/${encodeURIComponent(id)}`;
  const include = INCLUDE.map((name) => `include[]=${name}`).join("&");
  const response = await (await call(`${path}?${include}`)).json();
  const input = await (await call(`${path}/input_items?order=asc&limit=100`)).json();
  return { response, input: input.data };
}

/** Upload a file and return its object. */
export async function uploadFile(file) {
  const form = new FormData();
  form.append("purpose", "user_data");
  form.append("file", file, file.name);
  return (await call("v1/files", { method: "POST", body: form })).json();
}

/** Return the content at `url`, a path of this server. */
export async function fetchContent(url) {
  return (await call(url.replace(/^\//, ""))).blob();
}

async function call(path, options = {}) {
  let response;
  const key = apiKey();
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  try {
    response = await fetch(new URL(path, document.baseURI), { ...options, headers, credentials: "omit", cache: "no-store" });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new UserError("The server is not reachable. Check that it is running.");
  }
  if (response.ok) return response;
  const error = await response.json().then((body) => body.error, () => ({ message: `The server returned status ${response.status}.` }));
  if (response.status === 401) {
    throw new UserError(`This server requires an API key: ${sentence(error.message)} Enter one under Settings.`, { needsKey: true });
  }
  if (response.status === 429) {
    const wait = response.headers.get("retry-after");
    throw new UserError(`The server is busy. ${sentence(error.message)}${wait ? ` Try again in ${wait} s.` : ""}`);
  }
  throw new UserError(sentence(error.message), { code: error.code });
}

const sentence = (text) => (/[.!?]$/.test(text) ? text : `${text}.`);
