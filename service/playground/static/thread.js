// Shows one branch of a conversation: questions with their answers.
import { Answer } from "./answer.js";
import { branch, siblings } from "./conversations.js";
import { button, byId, copyText, el } from "./dom.js";

export class Thread {
  /** `actions`: edit(turn, text), regenerate(turn), retry(turn), choose(turn), decide(turn, call, approve). None of
   *  them if read-only. */
  constructor(actions, online) {
    this.root = byId("thread");
    this.actions = actions;
    this.online = online;
    this.answers = new Map(); // by the id of the turn
  }

  /** Show the chosen branch of `conversation`. `live` is the turn that is being answered, if any. */
  show(conversation, live = null) {
    for (const answer of this.answers.values()) answer.pause();
    this.answers.clear();
    this.root.replaceChildren();
    for (const turn of branch(conversation)) this.add(conversation, turn, turn === live);
  }

  /** Add a turn at the end and return its answer. */
  add(conversation, turn, live) {
    const actions = this.actions && { regenerate: () => this.actions.regenerate(turn), retry: () => this.actions.retry(turn), decide: (call, approve) => this.actions.decide(turn, call, approve) };
    const answer = new Answer(turn, { actions, live, online: this.online });
    const number = this.answers.size + 1;
    answer.root.setAttribute("aria-label", `Answer ${number}`);
    this.answers.set(turn.id, answer);
    this.root.append(this.question(conversation, turn, number), answer.root);
    return answer;
  }

  /** The answer that contains the focus, or the last one. */
  current() {
    const answers = [...this.answers.values()];
    return answers.find(({ root }) => root.contains(document.activeElement)) ?? answers.at(-1);
  }

  question(conversation, turn, number) {
    const text = el("p", { class: "asked" }, turn.question);
    const files = turn.files.map(({ name }) => el("li", {}, el("span", { class: "file" }, name)));
    const tools = el("div", { class: "actions", role: "group", "aria-label": "Question" });
    const root = el("section", { class: "question", "aria-label": `Question ${number}` }, el("div", { class: "bubble" }, ...(files.length ? [el("ul", { class: "files", "aria-label": "Files" }, ...files)] : []), text), tools);
    const copy = button("Copy", () => copyText(turn.question, copy, "Question"), { class: "quiet small" });
    tools.append(copy);
    if (this.actions) {
      tools.append(button("Edit", () => this.edit(root, turn), { class: "quiet small edit", title: "Change the question and ask again" }));
      const all = siblings(conversation, turn);
      if (all.length > 1) tools.prepend(this.switcher(all, turn));
    }
    return root;
  }

  switcher(all, turn) {
    const at = all.indexOf(turn);
    const step = (to, sign, label) => {
      const node = button(sign, () => this.actions.choose(all[to]), { class: "quiet small", "aria-label": label, title: label });
      node.disabled = !all[to];
      return node;
    };
    return el("span", { class: "branches", role: "group", "aria-label": "Versions" }, step(at - 1, "‹", "Earlier version"), el("span", {}, `${at + 1} / ${all.length}`), step(at + 1, "›", "Later version"));
  }

  /** Replace the question by a field. Sending it starts a branch; Escape cancels. */
  edit(root, turn) {
    const field = el("textarea", { rows: 2, "aria-label": "Edit the question" });
    field.value = turn.question;
    const old = [...root.children];
    const cancel = () => {
      root.replaceChildren(...old);
      root.querySelector(".edit").focus();
    };
    const send = () => field.value.trim() && this.actions.edit(turn, field.value.trim());
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        cancel();
      } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        send();
      }
    });
    const row = el("div", { class: "row" }, button("Cancel", cancel), button("Send", send, { class: "primary" }));
    root.replaceChildren(el("div", { class: "ask editing" }, field, row));
    field.focus();
  }

  /** Edit the last question. */
  editLast() {
    [...this.root.querySelectorAll(".edit")].at(-1)?.click();
  }
}
