// The official JavaScript SDK. Run with PROGRAM URL KEY, in the folder that has node_modules.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import assert from "node:assert";

const require = createRequire(pathToFileURL(process.cwd() + "/"));
const OpenAI = require("openai").default;
const [url, apiKey] = process.argv.slice(2);
const client = new OpenAI({ baseURL: url + "/v1", apiKey, maxRetries: 0 });
const model = "scripted";
const hello = "Hello there, how are you?";
const user = (content) => [{ role: "user", content }];
const create = (body) => client.chat.completions.create({ model, ...body });
const weather = {
  type: "function",
  function: {
    name: "get_weather",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
};
const code = [{ type: "code_interpreter", container: { type: "auto" } }];

const features = {
  chat: async () => {
    assert.equal((await create({ messages: user("Hi") })).choices[0].message.content, hello);
  },
  streaming: async () => {
    let text = "", usage = null;
    const stream = await create({ messages: user("Hi"), stream: true, stream_options: { include_usage: true } });
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta.content ?? "";
      usage = chunk.usage ?? usage;
    }
    assert.equal(text, hello);
    assert.ok(usage.completion_tokens > 0);
  },
  "deferred code": async () => {
    const { message } = (await create({ messages: user("6 * 7?") })).choices[0];
    assert.ok(message.content.endsWith("\\boxed{42}."));
    assert.equal(message.tool_calls, undefined);
    assert.equal(message.executed_tools[0].status, "ok");
    const runner = client.chat.completions.stream({ model, messages: user("6 * 7?") });
    assert.equal(await runner.finalContent(), message.content);
  },
  "own functions": async () => {
    const runner = client.chat.completions.runTools({
      model,
      messages: user("weather?"),
      stream: true,
      tools: [{
        type: "function",
        function: { ...weather.function, parse: JSON.parse, function: ({ city }) => `sunny in ${city}` },
      }],
    });
    assert.match(await runner.finalContent(), /sunny/);
    const { message } = (await create({ messages: user("weather?"), tools: [weather] })).choices[0];
    assert.deepEqual(JSON.parse(message.tool_calls[0].function.arguments), { city: "Paris" });
  },
  "functions and code": async () => {
    const done = "It is sunny in Paris, and the answer is \\boxed{42}.";
    const question = "What is 6 * 7 and the weather?";
    const run = ({ city }) => `sunny in ${city}`;
    for (const stream of [false, true]) {
      const runner = client.chat.completions.runTools({
        model,
        messages: user(question),
        stream,
        tools: [{ type: "function", function: { ...weather.function, parse: JSON.parse, function: run } }],
        deferral: { enabled: true },
      });
      assert.ok((await runner.finalContent()).endsWith(done));
    }
    const tools = [{ type: "function", strict: true, ...weather.function }, ...code];
    const first = await client.responses.create({ model, input: question, tools });
    const kinds = first.output.map((item) => item.type);
    assert.deepEqual(kinds, ["message", "code_interpreter_call", "message", "function_call"]);
    const output = { type: "function_call_output", call_id: first.output[3].call_id, output: "sunny in Paris" };
    const second = await client.responses.create({
      model, tools, input: [output], previous_response_id: first.id,
    });
    assert.ok(second.output_text.endsWith(done));
  },
  "JSON by schema": async () => {
    const schema = { type: "object", properties: { degrees: { type: "integer" } }, required: ["degrees"] };
    const reply = await create({
      messages: user("JSON please"),
      response_format: { type: "json_schema", json_schema: { name: "place", schema } },
    });
    assert.equal(JSON.parse(reply.choices[0].message.content).degrees, 21);
  },
  thinking: async () => {
    const reply = await create({ messages: user("Think"), chat_template_kwargs: { enable_thinking: true } });
    assert.equal(reply.choices[0].message.reasoning, "Let me see.");
  },
  "log-probabilities": async () => {
    const reply = await create({ messages: user("Hi"), logprobs: true });
    assert.equal(reply.choices[0].logprobs.content.map((item) => item.token).join(""), hello);
  },
  errors: async () => {
    assert.ok((await create({ messages: user("Hi"), store: true })).choices);
    const speak = { messages: user("Hi"), modalities: ["text", "audio"] };
    await assert.rejects(create(speak), { status: 400, param: "modalities" });
    const stranger = new OpenAI({ baseURL: url + "/v1", apiKey: "wrong", maxRetries: 0 });
    await assert.rejects(stranger.models.list(), { status: 401 });
  },
  "Responses API": async () => {
    const reply = await client.responses.create({ model, input: "6 * 7?", tools: code });
    assert.match(reply.output_text, /boxed\{42\}/);
    const kinds = new Set();
    for await (const event of await client.responses.create({ model, input: "6 * 7?", tools: code, stream: true }))
      kinds.add(event.type);
    assert.ok(kinds.has("response.code_interpreter_call.completed"));
    assert.ok(kinds.has("response.completed"));
  },
};

const outcomes = {};
for (const [name, use] of Object.entries(features)) {
  try {
    await use();
    outcomes[name] = null;
  } catch (error) {
    outcomes[name] = String(error.stack ?? error);
  }
}
console.log("OUTCOMES " + JSON.stringify(outcomes));
