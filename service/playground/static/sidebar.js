// The list of conversations, and its drawer on narrow screens.
import { branch, deleteConversation, listConversations, loadConversation, saveConversation } from "./conversations.js";
import { button, byId, el, saveBlob } from "./dom.js";
import { conversationText } from "./markdown_export.js";

const NARROW = matchMedia("(max-width: 860px)");

export class Sidebar {
  /** `actions`: open(id), create(), removed(id), openStored(). */
  constructor(actions) {
    this.actions = actions;
    this.current = null;
    byId("new").addEventListener("click", () => {
      this.close();
      actions.create();
    });
    byId("open-stored").addEventListener("click", () => {
      this.close();
      actions.openStored();
    });
    byId("open-sidebar").addEventListener("click", () => this.toggle());
    byId("close-sidebar").addEventListener("click", () => this.close());
    byId("shade").addEventListener("click", () => this.close());
    NARROW.addEventListener("change", () => this.setOpen(!NARROW.matches));
    this.setOpen(!NARROW.matches);
  }

  toggle() {
    this.setOpen(!this.isOpen);
    if (NARROW.matches && this.isOpen) byId("new").focus();
  }

  /** Close the drawer of a narrow screen. On a wide screen the list stays. */
  close() {
    if (!NARROW.matches || !this.isOpen) return false;
    this.setOpen(false);
    byId("open-sidebar").focus();
    return true;
  }

  setOpen(isOpen) {
    this.isOpen = isOpen;
    document.body.classList.toggle("no-sidebar", !isOpen);
    byId("sidebar").inert = !isOpen;
    byId("shade").hidden = !(isOpen && NARROW.matches);
    byId("open-sidebar").setAttribute("aria-expanded", String(isOpen));
  }

  /** Show the stored conversations; `current` is the id of the open one. */
  show(current = this.current) {
    this.current = current;
    const all = listConversations();
    byId("no-history").textContent = all.length ? "Kept in this browser only." : "Conversations are kept in this browser.";
    byId("history").replaceChildren(...all.map((conversation) => this.entry(conversation)));
  }

  entry({ id, title, updated }) {
    const open = button(title || "Untitled", () => {
      this.close();
      this.actions.open(id);
    }, { class: "title", title: `${title}\n${new Date(updated).toLocaleString()}` });
    if (id === this.current) open.setAttribute("aria-current", "true");
    const menu = el("details", { class: "menu" }, el("summary", { "aria-label": `More for ${title}`, title: "More" }, "⋯"));
    const item = (label, action) => button(label, () => {
      menu.open = false;
      action(loadConversation(id));
    });
    menu.append(el("div", { class: "items" }, item("Rename", (it) => this.rename(it)), item("Export as Markdown", exportMarkdown), item("Export as JSON", exportJson), item("Delete", (it) => this.remove(it))));
    menu.addEventListener("focusout", (event) => {
      if (event.relatedTarget && !menu.contains(event.relatedTarget)) menu.open = false;
    });
    menu.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !menu.open) return;
      event.stopPropagation();
      menu.open = false;
      menu.firstChild.focus();
    });
    return el("li", {}, open, menu);
  }

  rename(conversation) {
    const title = window.prompt("Name of the conversation:", conversation.title)?.trim();
    if (!title) return;
    saveConversation({ ...conversation, title });
    this.actions.renamed(conversation.id, title);
    this.show();
  }

  remove({ id, title }) {
    if (!window.confirm(`Delete “${title}” from this browser? The server keeps its stored answers until they expire.`)) return;
    deleteConversation(id);
    this.actions.removed(id);
    this.show();
  }
}

const fileName = (title) => title.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "").slice(0, 40) || "conversation";

function exportMarkdown(conversation) {
  const text = conversationText(conversation.title, branch(conversation));
  saveBlob(new Blob([text], { type: "text/markdown" }), `${fileName(conversation.title)}.md`);
}

function exportJson(conversation) {
  saveBlob(new Blob([JSON.stringify(conversation, null, 1)], { type: "application/json" }), `${fileName(conversation.title)}.json`);
}
