// The page: connects its parts, handles keys and links.
import { UserError } from "./api.js";
import { Chat } from "./chat.js";
import { Composer } from "./composer.js";
import { deleteConversation, isConversationKey, listConversations, newConversation } from "./conversations.js";
import { announce, button, byId, el } from "./dom.js";
import { questionOf } from "./episode.js";
import { Follower } from "./follower.js";
import { SettingsForm } from "./settings.js";
import { fromFragment, holdsEpisode } from "./share_link.js";
import { Sidebar } from "./sidebar.js";
import { lasting } from "./storage.js";

const DEMO_EXAMPLES = [
  ["Two products", "What is 739184 times 52967 plus 90412 times 33771?"],
  ["A mistake, fixed", "Find the lcm of 91234 and 120988."],
  ["Digits of a power", "Add up the digits of 7 ** 45."],
];
const EXAMPLES = [
  ["Numbers", "How many primes lie between 10,000 and 20,000, and what is their sum?"],
  ["A plot", "Plot sin(x) and its Taylor polynomials of degree 1, 3 and 5 between -5 and 5."],
  ["A simulation", "Estimate by simulation how many people share a birthday in a group of 23, and compare it with the exact probability."],
  ["A table", "Show a table of the first ten Fibonacci numbers with their prime factors."],
];
const THEMES = { auto: "light dark", light: "light", dark: "dark" };
const THEME_STORE = "ih-grpo.theme";
// A standalone page has no server and carries its episode in an attribute (service/playground/record.py).
const PAGE = document.documentElement.dataset;
const online = PAGE.standalone === undefined;

const settings = new SettingsForm();
const follower = new Follower();
const chat = new Chat(settings, { fail: showError, busy: (flag) => composer.setBusy(flag), changed: onChange }, { online });
const composer = new Composer({
  async send(question, files) {
    showError(null);
    if (settings.models.length === 0) await loadModels();
    if (settings.models.length === 0) return false; // the error is already shown
    follower.update(true);
    return chat.ask(question, { files });
  },
  stop: () => chat.stop(),
  editLast: () => chat.thread.editLast(),
  fail: showError,
});
const sidebar = new Sidebar({
  open: (id) => openConversation(id),
  create: startConversation,
  openStored: askForStored,
  removed: (id) => id === chat.conversation.id && startConversation(),
  renamed: (id, title) => {
    if (id === chat.conversation.id) chat.conversation.title = title;
    onChange();
  },
});

/** Update what depends on the open conversation. */
function refresh() {
  const { conversation } = chat;
  byId("welcome").hidden = conversation.turns.length > 0 || !online;
  document.title = conversation.title ? `${conversation.title} – IH-GRPO` : "IH-GRPO playground";
  if (online) sidebar.show(conversation.id);
}

/** Do the same, and name the conversation in the address, so that a reload opens it again. */
function onChange() {
  refresh();
  if (!online) return;
  const { conversation } = chat;
  const isEmpty = conversation.turns.length === 0;
  const isStored = listConversations().some(({ id }) => id === conversation.id);
  if (isStored) history.replaceState(null, "", `${location.pathname}${location.search}#c=${conversation.id}`);
  else if (isEmpty) history.replaceState(null, "", location.pathname + location.search);
}

function startConversation() {
  showError(null);
  chat.show(newConversation());
  byId("question").focus();
}

function openConversation(id) {
  showError(null);
  if (!chat.open(id)) return showError(new UserError("This conversation is not in this browser."));
  follower.toEnd();
  byId("question").focus({ preventScroll: true });
}

async function askForStored() {
  const id = window.prompt("Id of a stored answer (resp_…):")?.trim();
  if (id) await openStored(id);
}

async function openStored(id) {
  showError(null);
  try {
    await chat.openStored(id);
    announce("Stored answer opened.");
  } catch (error) {
    showError(error);
  }
}

/** Show an error above the conversation; null hides it. */
function showError(error) {
  const problem = byId("problem");
  problem.hidden = error === null;
  if (error === null) return;
  if (!(error instanceof UserError)) console.error(error);
  problem.textContent = error instanceof UserError ? error.message : `Internal error of this page: ${error.message}`;
  if (error.needsKey) settings.askForKey();
}

async function loadModels() {
  try {
    await settings.load();
    showExamples();
    showError(null);
  } catch (error) {
    showError(error);
  }
}

function showExamples() {
  const examples = settings.isDemo ? DEMO_EXAMPLES : EXAMPLES;
  byId("examples").replaceChildren(
    ...examples.map(([name, question]) => {
      const card = button("", () => composer.fill(question), { class: "example" });
      card.append(el("b", {}, name), el("span", {}, question));
      return card;
    }),
  );
}

/** Show what the fragment of the address names: an episode, a conversation of this browser, or a stored answer. */
async function openFragment() {
  const fragment = holdsEpisode(location.hash) ? location.hash : PAGE.episode;
  const [, kind, id] = /^#([cr])=([\w-]+)$/.exec(location.hash) ?? [];
  if (fragment) await openLink(fragment);
  else if (kind === "c" && id !== chat.conversation.id) openConversation(id);
  else if (kind === "r") await openStored(id);
}

async function openLink(fragment) {
  try {
    const episode = await fromFragment(fragment);
    const answer = chat.showEpisode(episode, questionOf(episode));
    answer.about.textContent += ` · ${new Date(episode.created).toLocaleDateString("en", { dateStyle: "medium" })}`;
    answer.time.open = true;
    follower.update(false); // it is read from its start
    scrollTo(0, 0);
    answer.root.focus({ preventScroll: true }); // so that p replays it
    announce("Answer loaded from a link.");
    if (!matchMedia("(prefers-reduced-motion: reduce)").matches) answer.toggle();
  } catch {
    showError(new UserError("The link is damaged or incomplete: no answer could be read from it."));
  }
}

function setTheme(name) {
  byId("theme").lastChild.textContent = name;
  document.documentElement.style.colorScheme = THEMES[name];
}

function nextTheme() {
  const names = Object.keys(THEMES);
  const next = names[(names.indexOf(byId("theme").lastChild.textContent) + 1) % names.length];
  setTheme(next);
  lasting.setItem(THEME_STORE, next);
}

function onKey(event) {
  const typing = event.target.matches("textarea, input:not([type=range]):not([type=checkbox]), select");
  if (document.querySelector("dialog[open]")) return;
  if (event.key === "Escape") {
    if (!sidebar.close()) chat.stop();
  } else if (!typing && !event.ctrlKey && !event.metaKey && !event.altKey && KEYS[event.key]) {
    event.preventDefault();
    KEYS[event.key]();
  }
}

const KEYS = {
  "?": () => byId("help").showModal(),
  "/": () => byId("question").focus(),
  n: startConversation,
  t: () => chat.thread.current()?.time.toggleAttribute("open"),
  p: () => chat.thread.current()?.toggle(),
  l: () => chat.thread.current()?.copyLink(),
};

byId("open-help").addEventListener("click", KEYS["?"]);
byId("open-settings").addEventListener("click", () => byId("settings").showModal());
byId("theme").addEventListener("click", nextTheme);
byId("key").addEventListener("change", loadModels);
byId("delete-all").addEventListener("click", () => {
  if (!window.confirm("Delete all conversations from this browser?")) return;
  for (const { id } of listConversations()) deleteConversation(id);
  byId("settings").close();
  startConversation();
});
document.addEventListener("keydown", onKey);
addEventListener("hashchange", openFragment);
addEventListener("pagehide", () => chat.run && chat.save(chat.run.conversation));
addEventListener("storage", (event) => isConversationKey(event.key) && sidebar.show());
setTheme(THEMES[lasting.getItem(THEME_STORE)] ? lasting.getItem(THEME_STORE) : "auto");

refresh();
if (online) await loadModels();
await openFragment();
