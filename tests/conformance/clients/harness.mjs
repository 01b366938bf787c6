// Shared code of the JavaScript programs. Run with PROGRAM URL KEY, in the folder that has node_modules.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

export const require = createRequire(pathToFileURL(process.cwd() + "/"));
export const [url, apiKey] = process.argv.slice(2);
export const model = "scripted";
export const hello = "Hello there, how are you?";

// Run every feature and print its outcome: null if it works, otherwise the error.
export async function run(features) {
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
}
