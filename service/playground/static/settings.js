// The settings dialog and the choice of the model. The key is kept in this tab's session storage only.
import { listModels } from "./api.js";
import { byId, el } from "./dom.js";
import { lasting, ofTab } from "./storage.js";

const STORE = "ih-grpo.settings";
const KEY_STORE = "ih-grpo.key";
const NUMBERS = ["temperature", "top_p", "max_output_tokens", "seed"];

export class SettingsForm {
  constructor() {
    this.form = byId("options");
    this.models = [];
    this.restore();
    this.form.addEventListener("input", () => this.keep());
    this.form.elements.enabled.addEventListener("change", () => this.describe());
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      byId("settings").close();
    });
    byId("model").addEventListener("change", () => {
      this.keep();
      this.describe();
    });
  }

  /** Load the list of models from the server. */
  async load() {
    this.models = await listModels();
    const select = byId("model");
    const wanted = this.wanted ?? select.value;
    select.replaceChildren(...this.models.map(({ id }) => el("option", {}, id)));
    if (this.models.some(({ id }) => id === wanted)) select.value = wanted;
    select.disabled = this.models.length < 2;
    this.describe();
  }

  describe() {
    const model = this.models.find(({ id }) => id === byId("model").value);
    const policy = model?.deferral;
    const facts = [
      model?.context_length && `${model.context_length.toLocaleString("en")} tokens of context`,
      policy?.run_limit_s && `${policy.run_limit_s} s a flush`,
    ];
    byId("model-facts").textContent = model ? [model.id, ...facts].filter(Boolean).join(" · ") : "";
    byId("welcome-model").textContent = model?.id ?? "the model";
    this.isDemo = Boolean(model?.notice);
    this.warn(model?.notice);
    if (policy?.max_turns) this.form.elements.max_turns.placeholder = policy.max_turns;
  }

  /** Show the server's notice about the model, and its consequence for the current settings. */
  warn(notice) {
    const off = notice && !this.form.elements.enabled.checked;
    byId("notice").textContent = off ? `${notice}. With deferred execution off it can't answer, because it was only trained to answer with code that runs.` : (notice ?? "");
    byId("notice").hidden = byId("demo").hidden = !notice;
    byId("demo").title = notice ?? "";
  }

  /** Return the request for `question` with `files`. Unset fields are not sent and follow the checkpoint's defaults. */
  request(question, files) {
    const fields = this.form.elements;
    const parts = files.map(({ id }) => ({ type: "input_file", file_id: id }));
    const content = files.length ? [...parts, { type: "input_text", text: question }] : question;
    const request = { model: byId("model").value, input: [{ role: "user", content }] };
    const instructions = fields.instructions.value.trim();
    if (instructions) request.instructions = instructions;
    for (const name of NUMBERS) if (fields[name].value !== "") request[name] = fields[name].valueAsNumber;
    if (!fields.enabled.checked) return request;
    request.tools = [{ type: "code_interpreter", container: { type: "auto" } }];
    for (const [server_label, server_url] of mcpServers(fields.mcp_servers.value)) {
      request.tools.push({ type: "mcp", server_label, server_url, require_approval: fields.approve.checked ? "always" : "never" });
    }
    const deferral = {};
    if (!fields.eager.checked) deferral.eager = false;
    if (fields.max_turns.value !== "") deferral.max_turns = fields.max_turns.valueAsNumber;
    if (Object.keys(deferral).length) request.deferral = deferral;
    return request;
  }

  /** Validate all fields. The dialog shows the first error. */
  check() {
    const field = this.form.elements.mcp_servers;
    const isValid = mcpServers(field.value).every(([label, url, ...more]) => /^[\w.-]{1,64}$/.test(label) && URL.canParse(url) && more.length === 0);
    field.setCustomValidity(isValid ? "" : "Each line must be a name and a URL.");
    if (this.form.checkValidity()) return true;
    if (!byId("settings").open) byId("settings").showModal();
    return this.form.reportValidity();
  }

  /** Open the dialog at the field for the key. */
  askForKey() {
    if (!byId("settings").open) byId("settings").showModal();
    byId("key").focus();
  }

  keep() {
    const values = { model: byId("model").value };
    for (const field of this.form.elements) {
      if (field.name) values[field.name] = field.type === "checkbox" ? field.checked : field.value;
    }
    try {
      lasting.setItem(STORE, JSON.stringify(values));
      ofTab.setItem(KEY_STORE, byId("key").value);
    } catch {
      // a full storage keeps the earlier values
    }
  }

  restore() {
    byId("key").value = ofTab.getItem(KEY_STORE) ?? "";
    let values = {};
    try {
      values = JSON.parse(lasting.getItem(STORE)) ?? {};
    } catch {
      return;
    }
    this.wanted = values.model;
    for (const field of this.form.elements) {
      const value = values[field.name];
      if (!field.name || value === undefined) continue;
      if (field.type === "checkbox") field.checked = value;
      else field.value = value;
    }
  }
}

/** The words of each line that is not empty: a name and a URL. */
const mcpServers = (text) => text.split("\n").map((line) => line.trim().split(/\s+/)).filter(([label]) => label);
