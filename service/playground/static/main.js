// The page: ask a question, watch the episode, replay and share it.
import { UserError, streamChat } from "./api.js";
import { byId, el } from "./dom.js";
import { duration, flushes, newEpisode, addDelta } from "./episode.js";
import { fromFragment, holdsEpisode, toFragment } from "./share_link.js";
import { Replay } from "./replay.js";
import { milliseconds } from "./segments.js";
import { SettingsForm } from "./settings.js";
import { asCurl, asPython } from "./snippets.js";

const EXAMPLES = [
  ["Two products", "What is 739184 times 52967 plus 90412 times 33771?"],
  ["A mistake, fixed", "Find the lcm of 91234 and 120988."],
  ["Digits of a power", "Add up the digits of 7 ** 45."],
];
const THEMES = { auto: "light dark", light: "light", dark: "dark" };
// A standalone page has no server and carries its episode in an attribute (service/playground/record.py).
const STANDALONE = document.documentElement.dataset;
const settings = new SettingsForm();
const replay = new Replay();
let running = null;

/** Send the question and show the episode while it runs. */
async function ask() {
  const question = byId("question").value.trim();
  if (!question || !settings.check()) return byId("question").focus();
  running?.abort();
  const stopping = (running = new AbortController());
  if (settings.models.length === 0) await loadModels();
  if (running !== stopping) return;
  if (settings.models.length === 0) return (running = null); // the error is already shown
  const episode = newEpisode(settings.request(question));
  const began = performance.now();
  const elapsed = () => performance.now() - began;
  history.replaceState(null, "", location.pathname + location.search);
  showError(null);
  announce("Question sent.");
  busy(true);
  replay.show(episode, { live: true });
  byId("transcript").focus({ preventScroll: true }); // leaves the question field, so that keyboard shortcuts work
  describe(episode, "waiting for the first token");
  const animation = animate(() => replay.grow(elapsed()));
  try {
    for await (const chunk of streamChat(episode.request, settings.key, stopping.signal)) receive(episode, chunk, elapsed());
  } catch (error) {
    if (stopping.signal.aborted) episode.finish = "stopped";
    else showError(error);
  }
  animation.stop();
  if (running !== stopping) return; // another question was sent
  running = null;
  episode.ended = elapsed();
  busy(false);
  replay.grow(episode.ended, true);
  describe(episode);
  announce(`Done: ${byId("about").textContent}.`);
}

function receive(episode, chunk, ms) {
  if (chunk.usage) episode.usage = chunk.usage;
  for (const choice of chunk.choices) {
    addDelta(episode, ms, choice.delta);
    episode.finish = choice.finish_reason ?? episode.finish;
    const tool = choice.delta.executed_tools?.at(-1);
    if (tool) announce(`${tool.blocks.length} block${tool.blocks.length === 1 ? "" : "s"} ${tool.status}.`);
    describe(episode, "writing");
  }
}

/** Show the line of facts under the question. */
function describe(episode, doing) {
  const finish = { stop: "completed", length: "cut at a limit", stopped: "stopped by you" }[episode.finish];
  const tools = flushes(episode.events);
  const facts = [episode.request.model, doing ?? finish ?? "interrupted"];
  if (!doing) facts.push(milliseconds(duration(episode)), `${tools.length} flush${tools.length === 1 ? "" : "es"}`);
  if (episode.usage) facts.push(`${episode.usage.completion_tokens} tokens`);
  byId("about").textContent = facts.join(" · ");
}

/** Call `step` before each repaint until stopped. */
function animate(step) {
  let going = true;
  const loop = () => {
    if (!going) return;
    step();
    requestAnimationFrame(loop);
  };
  requestAnimationFrame(loop);
  return { stop: () => (going = false) };
}

function busy(is) {
  byId("stop").hidden = !is;
  byId("go").disabled = is;
  byId("ask").ariaBusy = String(is);
}

/** Show an error; null hides it. */
function showError(error) {
  const problem = byId("problem");
  problem.hidden = error === null;
  if (error === null) return;
  if (!(error instanceof UserError)) console.error(error);
  problem.textContent = error instanceof UserError ? error.message : `Internal error of this page: ${error.message}`;
  if (error.needsKey) byId("key").focus();
}

const announce = (words) => (byId("status").textContent = words);

/** Copy text to the clipboard, or show it if the browser doesn't allow that. */
async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
    byId("copied").textContent = `${what} copied`;
  } catch {
    byId("copied").textContent = "";
    window.prompt(`${what}:`, text);
  }
}

async function shareEpisode() {
  if (!replay.episode || replay.live) return;
  history.replaceState(null, "", await toFragment(replay.episode));
  await copy(location.href, "Link");
}

/** Replay the episode in the URL, if there is one. */
async function openLink() {
  const fragment = holdsEpisode(location.hash) ? location.hash : STANDALONE.episode;
  if (!fragment) return;
  try {
    const episode = await fromFragment(fragment);
    running?.abort();
    replay.show(episode);
    byId("transcript").focus({ preventScroll: true }); // as after a question, so that p replays it
    describe(episode);
    byId("about").textContent += ` · ${new Date(episode.created).toLocaleDateString("en", { dateStyle: "medium" })}`;
    byId("question").value = byId("about-question").textContent;
    announce("Episode loaded from a link.");
    if (!matchMedia("(prefers-reduced-motion: reduce)").matches) replay.toggle();
  } catch {
    showError(new UserError("The link is damaged or incomplete: no episode could be read from it."));
  }
}

const base = () => new URL("./", document.baseURI).href.split("#")[0];

function theme() {
  const button = byId("theme");
  const names = Object.keys(THEMES);
  const next = names[(names.indexOf(button.lastChild.textContent) + 1) % names.length];
  button.lastChild.textContent = next;
  document.documentElement.style.colorScheme = THEMES[next];
}

function onKey(event) {
  const typing = event.target.matches("textarea, input:not([type=range]):not([type=checkbox]), select");
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    if (!running) ask();
  } else if (event.key === "Escape" && !byId("help").open) {
    running?.abort();
  } else if (!typing && !event.ctrlKey && !event.metaKey && !event.altKey && KEYS[event.key]) {
    event.preventDefault();
    KEYS[event.key]();
  }
}

const KEYS = {
  "?": () => byId("help").showModal(),
  "/": () => byId("question").focus(),
  p: () => replay.toggle(),
  l: shareEpisode,
};

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
byId("stop").addEventListener("click", () => running?.abort());
byId("share").addEventListener("click", shareEpisode);
byId("copy-curl").addEventListener("click", () => copy(asCurl(replay.episode.request, base(), Boolean(settings.key)), "curl command"));
byId("copy-python").addEventListener("click", () => copy(asPython(replay.episode.request, base(), Boolean(settings.key)), "Program"));
byId("open-help").addEventListener("click", KEYS["?"]);
byId("theme").addEventListener("click", theme);
byId("key").addEventListener("change", loadModels);
document.addEventListener("keydown", onKey);
addEventListener("hashchange", openLink);
byId("examples").append(
  ...EXAMPLES.map(([name, question]) => {
    const chip = el("button", { type: "button", class: "chip", title: question }, name);
    chip.addEventListener("click", () => {
      byId("question").value = question;
      byId("question").focus();
    });
    return chip;
  }),
);

async function loadModels() {
  try {
    await settings.load();
    showError(null);
  } catch (error) {
    showError(error);
  }
}

if (STANDALONE.standalone === undefined) await loadModels();
await openLink();
