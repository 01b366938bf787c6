// A request as a shell command and as a Python program. They name the key's variable, not the key.

// Fields that the SDK does not know are sent in extra_body.
const SDK_FIELDS = "model input instructions previous_response_id tools temperature top_p max_output_tokens".split(" ");

/** Return a curl command. */
export function asCurl(request, base, hasKey) {
  const key = hasKey ? ` \\\n  -H "Authorization: Bearer $IHGRPO_API_KEY"` : "";
  const body = JSON.stringify(request, null, 2).replaceAll("'", "'\\''");
  return `curl ${base}v1/responses${key} \\\n  -H 'Content-Type: application/json' \\\n  -d '${body}'`;
}

/** Return a program for the OpenAI SDK. */
export function asPython(request, base, hasKey) {
  const entries = Object.entries(request);
  const extra = entries.filter(([name]) => !SDK_FIELDS.includes(name));
  const lines = entries.filter(([name]) => SDK_FIELDS.includes(name)).map(([name, value]) => `    ${name}=${literal(value)},`);
  if (extra.length) lines.push(`    extra_body=${literal(Object.fromEntries(extra))},`);
  const key = hasKey ? `os.environ["IHGRPO_API_KEY"]` : `"none"`;
  return [
    ...(hasKey ? ["import os", ""] : []),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${literal(`${base}v1`)}, api_key=${key})`,
    "response = client.responses.create(",
    ...lines,
    ")",
    "print(response.output_text)",
    "",
  ].join("\n");
}

/** Return a JSON value as a Python literal. JSON strings are valid in Python. */
function literal(value) {
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (value === null || typeof value === "boolean") return { null: "None", true: "True", false: "False" }[value];
  if (typeof value !== "object") return JSON.stringify(value);
  return `{${Object.entries(value).map(([name, part]) => `${literal(name)}: ${literal(part)}`).join(", ")}}`;
}
