// LangChain's ChatOpenAI for JavaScript.
import assert from "node:assert";
import { apiKey, hello, model, require, run, url } from "./harness.mjs";

const { HumanMessage, ToolMessage } = require("@langchain/core/messages");
const { tool } = require("@langchain/core/tools");
const { ChatOpenAI } = require("@langchain/openai");
const { z } = require("zod");
const create = (options = {}) => new ChatOpenAI({ model, apiKey, configuration: { baseURL: url + "/v1" }, maxRetries: 0, ...options });
const weather = tool(async ({ city }) => "sunny in " + city, {
  name: "get_weather",
  description: "Weather of a city.",
  schema: z.object({ city: z.string() }),
});

async function converse(able) {
  const messages = [new HumanMessage("What is the weather?")];
  const first = await able.invoke(messages);
  assert.deepEqual(first.tool_calls[0].args, { city: "Paris" });
  const answer = new ToolMessage({ content: await weather.invoke(first.tool_calls[0].args), tool_call_id: first.tool_calls[0].id });
  messages.push(first, answer);
  const second = await able.invoke(messages);
  assert.match(second.text, /sunny/);
  messages.push(second, new HumanMessage("Think"));
  const third = await able.invoke(messages);
  messages.push(third, new HumanMessage("Hello"));
  assert.equal((await able.invoke(messages)).text, hello);
}

await run({
  chat: async () => assert.equal((await create().invoke("Hi")).text, hello),
  streaming: async () => {
    let whole;
    for await (const chunk of await create({ streamUsage: true }).stream("Hi")) whole = whole ? whole.concat(chunk) : chunk;
    assert.equal(whole.text, hello);
    assert.ok(whole.usage_metadata.output_tokens > 0);
  },
  "own functions": () => converse(create().bindTools([weather])),
  "JSON by schema": async () => {
    const place = z.object({ city: z.string(), degrees: z.number() });
    const able = create().withStructuredOutput(place, { method: "jsonSchema", strict: true });
    assert.deepEqual(await able.invoke("JSON please"), { city: "Paris", degrees: 21 });
  },
  "Responses API": async () => {
    await converse(create({ useResponsesApi: true }).bindTools([weather]));
    const stateless = { useResponsesApi: true, zdrEnabled: true, reasoning: { effort: "low", summary: "auto" } };
    await converse(create(stateless).bindTools([weather]));
  },
});
