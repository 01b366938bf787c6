// LangGraph's agent for JavaScript: its second turns send the model's own messages and the tools' answers back.
import assert from "node:assert";
import { apiKey, hello, model, require, run, url } from "./harness.mjs";

const { tool } = require("@langchain/core/tools");
const { createReactAgent } = require("@langchain/langgraph/prebuilt");
const { ChatOpenAI } = require("@langchain/openai");
const { z } = require("zod");
const weather = tool(async ({ city }) => "sunny in " + city, {
  name: "get_weather",
  description: "Weather of a city.",
  schema: z.object({ city: z.string() }),
});

async function converse(options = {}) {
  const llm = new ChatOpenAI({ model, apiKey, configuration: { baseURL: url + "/v1" }, maxRetries: 0, ...options });
  const agent = createReactAgent({ llm, tools: [weather] });
  let messages = [];
  for (const content of ["What is the weather?", "Think", "Hello"]) {
    ({ messages } = await agent.invoke({ messages: [...messages, { role: "user", content }] }));
    if (content.includes("weather")) assert.match(messages.at(-1).text, /sunny/);
  }
  assert.equal(messages.at(-1).text, hello);
}

await run({
  "own functions": () => converse(),
  "Responses API": () => converse({ useResponsesApi: true }),
});
