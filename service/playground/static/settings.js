// The form beside the episode. What is in it lives in this tab's session alone, the key included.
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

  /** Ask the server which models it has. */
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

  /** What the server says of the model: as that it is a demo, and what that means for these settings. */
  warn(notice) {
    const off = notice && !this.form.elements.enabled.checked;
    byId("notice").textContent = off ? `${notice}. With deferred execution off it can't answer at all: it only knows to answer by code that runs.` : (notice ?? "");
    byId("notice").hidden = !notice;
  }

  /** The request that asks `question`. Only what is set is sent: the rest is the checkpoint's own. */
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

  /** Whether all fields hold what they may; shows the first that doesn't. */
  check = () => this.form.reportValidity();

  keep() {
    const values = {};
    for (const field of this.form.elements) values[field.name || field.id] = field.type === "checkbox" ? field.checked : field.value;
    try {
      sessionStorage.setItem(STORE, JSON.stringify(values));
    } catch {
      // private windows may have no storage; then nothing is kept
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
