// The field for questions: keys, attached files, sending and stopping.
import { UserError, uploadFile } from "./api.js";
import { announce, button, byId, bytesText, el } from "./dom.js";

export class Composer {
  /** `actions`: send(question, files), which resolves to whether it was sent, stop(), editLast(), fail(error). */
  constructor(actions) {
    this.actions = actions;
    this.files = [];
    this.busy = false;
    this.sending = false; // the list of models is loaded first
    this.field = byId("question");
    byId("ask").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    this.field.addEventListener("keydown", (event) => this.onKey(event));
    byId("stop").addEventListener("click", actions.stop);
    byId("attach").addEventListener("click", () => byId("file-input").click());
    byId("file-input").addEventListener("change", (event) => {
      this.attach([...event.target.files]);
      event.target.value = "";
    });
    this.field.addEventListener("paste", (event) => {
      if (!event.clipboardData.files.length) return;
      event.preventDefault();
      this.attach([...event.clipboardData.files]);
    });
    this.acceptDrops();
  }

  onKey(event) {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      this.send();
    } else if (event.key === "ArrowUp" && this.field.value === "" && !this.busy) {
      event.preventDefault();
      this.actions.editLast();
    }
  }

  async send() {
    if (this.sending) return;
    const question = this.field.value.trim();
    if (this.busy) return announce("Wait for the answer, or stop it.");
    if (!question) return this.field.focus();
    if (this.files.some(({ id }) => !id)) return announce("Wait until the files are uploaded.");
    const files = this.files.map(({ id, name }) => ({ id, name }));
    this.sending = true;
    const sent = await this.actions.send(question, files);
    this.sending = false;
    if (!sent) return;
    this.field.value = "";
    this.files = [];
    this.showFiles();
  }

  /** Show `question` to be sent or changed. */
  fill(question) {
    this.field.value = question;
    this.field.focus();
  }

  setBusy(busy) {
    this.busy = busy;
    byId("stop").hidden = !busy;
    byId("go").hidden = busy;
    byId("ask").ariaBusy = String(busy);
  }

  /** Upload files and attach them to the next question. */
  async attach(files) {
    await Promise.all(files.map((file) => this.upload(file)));
  }

  async upload(file) {
    const entry = { name: file.name, size: file.size, id: null };
    this.files.push(entry);
    this.showFiles();
    try {
      entry.id = (await uploadFile(file)).id;
      announce(`${file.name} attached.`);
    } catch (error) {
      this.remove(entry);
      this.actions.fail(error instanceof UserError ? new UserError(`${file.name} was not attached: ${error.message}`, error) : error);
    }
    this.showFiles();
  }

  remove(entry) {
    this.files = this.files.filter((other) => other !== entry);
    this.showFiles();
  }

  showFiles() {
    const list = byId("attached");
    list.hidden = this.files.length === 0;
    list.replaceChildren(
      ...this.files.map((entry) => {
        const label = entry.id ? bytesText(entry.size) : "uploading…";
        const remove = button("✕", () => this.remove(entry), { class: "quiet small", "aria-label": `Remove ${entry.name}` });
        return el("li", { class: "file", "aria-busy": String(!entry.id) }, `${entry.name} · ${label}`, remove);
      }),
    );
  }

  /** Files can be dropped anywhere on the page. */
  acceptDrops() {
    let depth = 0;
    const show = (visible) => (byId("drop").hidden = !visible);
    const withFiles = (action) => (event) => {
      if (!event.dataTransfer?.types.includes("Files")) return;
      event.preventDefault();
      action(event);
    };
    addEventListener("dragenter", withFiles(() => show(++depth > 0)));
    addEventListener("dragleave", withFiles(() => show(--depth > 0)));
    addEventListener("dragover", withFiles(() => {}));
    addEventListener("drop", withFiles((event) => {
      depth = 0;
      show(false);
      this.attach([...event.dataTransfer.files]);
      this.field.focus();
    }));
  }
}
