// The current request as a shell command and as a Python program. They name the key's variable, not the key.

/** Return a curl command. */
export function asCurl(request, base, hasKey) {
  const key = hasKey ? ` \\\n  -H "Authorization: Bearer $IHGRPO_API_KEY"` : "";
  const body = JSON.stringify(request, null, 2).replaceAll("'", "'\\''");
  return `curl ${base}v1/chat/completions${key} \\\n  -H 'Content-Type: application/json' \\\n  -d '${body}'`;
}

/** Return a program for the OpenAI SDK. Extensions go into extra_body. */
export function asPython(request, base, hasKey) {
  const { deferral, ...known } = request;
  const lines = Object.entries(known).map(([name, value]) => `    ${name}=${literal(value)},`);
  if (deferral) lines.push(`    extra_body=${literal({ deferral })},`);
  const key = hasKey ? `os.environ["IHGRPO_API_KEY"]` : `"none"`;
  return [
    ...(hasKey ? ["import os", ""] : []),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${literal(`${base}v1`)}, api_key=${key})`,
    "completion = client.chat.completions.create(",
    ...lines,
    ")",
    "print(completion.choices[0].message.content)",
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
