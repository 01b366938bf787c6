// The settings form. Its values, including the key, are kept in this tab's session storage only.
import { byId, el } from "./dom.js";
import { listModels } from "./api.js";

const STORE = "ih-grpo.playground";
const NUMBERS = ["temperature", "seed", "max_tokens"];

export class SettingsForm {
  constructor() {
    this.form = byId("options");
    this.models = [];
    this.restore();
    this.form.addEventListener("input", () => this.keep());
    this.form.elements.enabled.addEventListener("change", () => this.describe());
    this.form.addEventListener("submit", (event) => event.preventDefault());
    byId("model").addEventListener("change", () => this.describe());
  }

  get key() {
    return byId("key").value.trim();
  }

  /** Load the list of models from the server. */
  async load() {
    this.models = await listModels(this.key);
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
    byId("model-facts").textContent = facts.filter(Boolean).join(" · ");
    this.warn(model?.notice);
    if (policy?.max_turns) this.form.elements.max_turns.placeholder = policy.max_turns;
  }

  /** Show the server's notice about the model, and its consequence for the current settings. */
  warn(notice) {
    const off = notice && !this.form.elements.enabled.checked;
    byId("notice").textContent = off ? `${notice}. With deferred execution off it can't answer, because it was only trained to answer with code that runs.` : (notice ?? "");
    byId("notice").hidden = !notice;
  }

  /** Return the request for `question`. Unset fields are not sent and follow the checkpoint's defaults. */
  request(question) {
    const fields = this.form.elements;
    const request = { model: byId("model").value, messages: [{ role: "user", content: question }] };
    for (const name of NUMBERS) if (fields[name].value !== "") request[name] = fields[name].valueAsNumber;
    const deferral = {};
    if (!fields.enabled.checked) deferral.enabled = false;
    if (!fields.eager.checked) deferral.eager = false;
    if (fields.max_turns.value !== "") deferral.max_turns = fields.max_turns.valueAsNumber;
    if (Object.keys(deferral).length) request.deferral = deferral;
    return request;
  }

  /** Validate all fields and show the first error. */
  check = () => this.form.reportValidity();

  keep() {
    const values = {};
    for (const field of this.form.elements) values[field.name || field.id] = field.type === "checkbox" ? field.checked : field.value;
    try {
      sessionStorage.setItem(STORE, JSON.stringify(values));
    } catch {
      // private windows may have no storage; nothing is kept then
    }
  }

  restore() {
    let values = {};
    try {
      values = JSON.parse(sessionStorage.getItem(STORE)) ?? {};
    } catch {
      return;
    }
    this.wanted = values.model;
    for (const field of this.form.elements) {
      const value = values[field.name || field.id];
      if (value === undefined || field.id === "model") continue;
      if (field.type === "checkbox") field.checked = value;
      else field.value = value;
    }
  }
}
