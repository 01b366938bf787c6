// Anthropic's JavaScript SDK. Run with PROGRAM URL KEY, in the folder that has node_modules.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import assert from "node:assert";

const require = createRequire(pathToFileURL(process.cwd() + "/"));
const Anthropic = require("@anthropic-ai/sdk").default;
const { betaZodTool } = require("@anthropic-ai/sdk/helpers/beta/zod");
const { z } = require("zod");
const [baseURL, apiKey] = process.argv.slice(2);
const client = new Anthropic({ baseURL, apiKey, maxRetries: 0 });
const hello = "Hello there, how are you?";
const user = (content) => [{ role: "user", content }];
const request = (messages, more) => ({ model: "scripted", max_tokens: 900, messages, ...more });
const create = (messages, more) => client.messages.create(request(messages, more));
const stream = (messages, more) => client.messages.stream(request(messages, more)).finalMessage();
const code = [{ type: "code_execution_20250522", name: "code_execution" }];
const weather = {
  name: "get_weather",
  input_schema: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
};
const reply = (message) => ({ role: "assistant", content: message.content });

const features = {
  chat: async () => {
    const message = await create(user("Hi"), { system: "Be kind.", metadata: { user_id: "me" } });
    assert.equal(message.content[0].text, hello);
    assert.equal(message.stop_reason, "end_turn");
  },
  "Messages API": async () => {
    const { input_tokens } = await client.messages.countTokens({ model: "scripted", messages: user("Hi") });
    assert.equal(input_tokens, (await create(user("Hi"))).usage.input_tokens);
    const stopped = await create(user("Hi"), { stop_sequences: [" there"] });
    assert.deepEqual([stopped.content[0].text, stopped.stop_sequence], ["Hello", " there"]);
  },
  streaming: async () => {
    let text = "";
    const events = client.messages.stream(request(user("Hi"))).on("text", (piece) => (text += piece));
    const message = await events.finalMessage();
    assert.equal(text, hello);
    assert.equal(message.content[0].text, hello);
    assert.ok(message.usage.output_tokens > 0);
  },
  "deferred code": async () => {
    for (const ask of [create, stream]) {
      const message = await ask(user("6 * 7?"), { tools: code });
      const kinds = message.content.map((block) => block.type);
      assert.deepEqual(kinds, ["text", "server_tool_use", "code_execution_tool_result", "text"]);
      assert.deepEqual(message.content[1].input, { code: "x = 6 * 7\nprint(x)" });
      assert.equal(message.content[2].content.stdout, "42");
      const again = [...user("6 * 7?"), reply(message), ...user("Hi")];
      assert.equal((await ask(again, { tools: code })).content[0].text, hello);
    }
  },
  "own functions": async () => {
    for (const ask of [create, stream]) {
      const first = await ask(user("weather?"), { tools: [weather] });
      assert.equal(first.stop_reason, "tool_use");
      const [use] = first.content;
      assert.deepEqual(use.input, { city: "Paris" });
      const result = { type: "tool_result", tool_use_id: use.id, content: [{ type: "text", text: "sunny" }] };
      const messages = [...user("weather?"), reply(first), { role: "user", content: [result] }];
      const second = await ask(messages, { tools: [weather] });
      assert.match(second.content[0].text, /sunny/);
      const third = await ask([...messages, reply(second), ...user("Hi")], { tools: [weather] });
      assert.equal(third.content[0].text, hello);
    }
    const tool = betaZodTool({
      name: "get_weather",
      description: "Weather of a city.",
      inputSchema: z.object({ city: z.string() }),
      run: ({ city }) => "sunny in " + city,
    });
    for (const stream of [false, true]) {
      const runner = client.beta.messages.toolRunner(request(user("weather?"), { tools: [tool], stream }));
      assert.match((await runner.runUntilDone()).content[0].text, /sunny/);
    }
  },
  "functions from code": async () => {
    const version = "code_execution_20250825";
    const tools = [{ ...weather, allowed_callers: [version] }, { type: version, name: "code_execution" }];
    for (const ask of [create, stream]) {
      const messages = user("How is the weather in both cities?");
      const first = await ask(messages, { tools });
      assert.equal(first.stop_reason, "tool_use");
      const [, run, ...uses] = first.content;
      assert.deepEqual(uses.map((use) => use.input.city), ["Paris", "Rome"]);
      for (const use of uses) assert.deepEqual(use.caller, { type: version, tool_id: run.id });
      const results = uses.map((use) => ({ type: "tool_result", tool_use_id: use.id, content: "sunny" }));
      messages.push(reply(first), { role: "user", content: results });
      const second = await ask(messages, { tools });
      assert.deepEqual(second.content.map((block) => block.type), ["code_execution_tool_result", "text"]);
      assert.equal(second.content[0].tool_use_id, run.id);
      assert.equal(second.content[1].text, "It is sunny in both.");
      messages.push(reply(second), ...user("Hi"));
      assert.equal((await ask(messages, { tools })).content[0].text, hello);
    }
  },
  "functions and code": async () => {
    const tools = [weather, ...code], messages = user("6 * 7 and the weather?");
    const ran = ["text", "server_tool_use", "code_execution_tool_result", "text"];
    for (const ask of [create, stream]) {
      const first = await ask(messages, { tools });
      assert.deepEqual(first.content.map((block) => block.type), [...ran, "tool_use"]);
      const result = { type: "tool_result", tool_use_id: first.content.at(-1).id, content: "sunny" };
      const second = await ask([...messages, reply(first), { role: "user", content: [result] }], { tools });
      assert.deepEqual(second.content.map((block) => block.type), ran);
      assert.match(second.content.at(-1).text, /sunny in Paris/);
    }
  },
  "JSON by schema": async () => {
    const schema = { type: "object", properties: { degrees: { type: "integer" } }, required: ["degrees"] };
    const message = await create(user("JSON please"), { output_config: { format: { type: "json_schema", schema } } });
    assert.equal(JSON.parse(message.content[0].text).degrees, 21);
  },
  thinking: async () => {
    const options = { thinking: { type: "enabled", budget_tokens: 1024 }, max_tokens: 2000 };
    const message = await stream(user("Think"), options);
    assert.equal(message.content[0].thinking, "Let me see.");
    assert.ok(message.content[0].signature);
    assert.equal(message.content[1].text, "Hello.");
    const again = await create([...user("Think"), reply(message), ...user("Hi")], options);
    assert.equal(again.content[0].text, hello);
  },
  errors: async () => {
    const picture = { type: "image", source: { type: "url", url: "https://example.com/a.png" } };
    await assert.rejects(create([{ role: "user", content: [picture] }]), (error) => {
      assert.equal(error.status, 400);
      assert.equal(error.error.error.param, "messages[0].content[0]");
      assert.ok(error.requestID);
      return true;
    });
    const stranger = new Anthropic({ baseURL, apiKey: "wrong", maxRetries: 0 });
    await assert.rejects(stranger.messages.create(request(user("Hi"))), { status: 401 });
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
