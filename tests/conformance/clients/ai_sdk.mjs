// Vercel's AI SDK. Run with PROGRAM URL KEY, in the folder that has node_modules.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import assert from "node:assert";

const require = createRequire(pathToFileURL(process.cwd() + "/"));
const { generateObject, generateText, stepCountIs, streamText, tool } = require("ai");
const { createOpenAI } = require("@ai-sdk/openai");
const { createAnthropic } = require("@ai-sdk/anthropic");
const { z } = require("zod");
const [url, apiKey] = process.argv.slice(2);
const openai = createOpenAI({ baseURL: url + "/v1", apiKey });
const chat = openai.chat("scripted"), responses = openai.responses("scripted");
const hello = "Hello there, how are you?";
const tools = {
  get_weather: tool({
    description: "Weather of a city.",
    inputSchema: z.object({ city: z.string() }),
    execute: async ({ city }) => "sunny in " + city,
  }),
};
const place = z.object({ city: z.string(), degrees: z.number() });
const stopWhen = stepCountIs(3);

async function converse(model, providerOptions) {
  const question = { role: "user", content: "What is the weather?" };
  const first = await generateText({ model, tools, stopWhen, messages: [question], providerOptions });
  assert.match(first.text, /sunny/);
  const messages = [question, ...first.response.messages, { role: "user", content: "Think" }];
  const second = await generateText({ model, tools, stopWhen, messages, providerOptions });
  messages.push(...second.response.messages, { role: "user", content: "Hello" });
  assert.equal((await generateText({ model, tools, stopWhen, messages, providerOptions })).text, hello);
}

const features = {
  chat: async () => {
    assert.equal((await generateText({ model: chat, prompt: "Hi" })).text, hello);
  },
  streaming: async () => {
    let text = "";
    for await (const piece of streamText({ model: chat, prompt: "Hi" }).textStream) text += piece;
    assert.equal(text, hello);
  },
  "own functions": () => converse(chat),
  "functions and code": async () => {
    const code_interpreter = openai.tools.codeInterpreter({});
    const { text, steps } = await generateText({
      model: responses,
      tools: { ...tools, code_interpreter },
      stopWhen,
      prompt: "What is 6 * 7 and the weather?",
    });
    assert.match(text, /It is sunny in Paris, and the answer is \\boxed\{42\}\.$/);
    const called = steps.flatMap((step) => step.toolCalls.map((call) => call.toolName));
    assert.deepEqual(called, ["code_interpreter", "get_weather", "code_interpreter"]);
  },
  "JSON by schema": async () => {
    for (const model of [chat, responses]) {
      const { object } = await generateObject({ model, schema: place, prompt: "JSON please" });
      assert.deepEqual(object, { city: "Paris", degrees: 21 });
    }
  },
  "Responses API": async () => {
    await converse(responses);
    const include = ["reasoning.encrypted_content"];
    const reasoning = { forceReasoning: true, reasoningEffort: "low", reasoningSummary: "auto" };
    await converse(responses, { openai: { ...reasoning, store: false, include, textVerbosity: "low" } });
  },
  "Messages API": async () => {
    const anthropic = createAnthropic({ baseURL: url + "/v1", apiKey });
    const claude = anthropic("scripted");
    await converse(claude);
    await converse(claude, { anthropic: { thinking: { type: "enabled", budgetTokens: 1024 } } });
    let text = "";
    for await (const piece of streamText({ model: claude, prompt: "Hi" }).textStream) text += piece;
    assert.equal(text, hello);
    const { object } = await generateObject({ model: claude, schema: place, prompt: "JSON please" });
    assert.deepEqual(object, { city: "Paris", degrees: 21 });
    const code = { code_execution: anthropic.tools.codeExecution_20250522() };
    const ran = await generateText({ model: claude, tools: code, prompt: "6 * 7?" });
    assert.match(ran.text, /boxed\{42\}/);
    assert.equal(ran.steps[0].toolResults[0].output.stdout, "42");
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
