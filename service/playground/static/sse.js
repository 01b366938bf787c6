// Server-sent events of a fetch response. EventSource supports neither POST nor headers.

/** Yield the data of each event as parsed JSON, until "[DONE]" or the end of the body. */
export async function* readEvents(body) {
  let rest = "";
  for await (const piece of readText(body)) {
    const events = (rest + piece).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart());
      if (data.length === 0) continue; // a keep-alive comment
      if (data[0] === "[DONE]") return;
      yield JSON.parse(data.join("\n"));
    }
  }
}

/** Yield decoded text. Uses a reader, because not all browsers can iterate over a stream. */
async function* readText(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
