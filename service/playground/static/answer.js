// An answer: its text, its timeline with a replay, and actions. Shown live, at its end, or at any moment of it.
import { announce, button, copyText, el } from "./dom.js";
import { duration, flushes } from "./episode.js";
import { lanesOf } from "./lanes.js";
import { answerText } from "./markdown_export.js";
import { milliseconds, segmentsOf } from "./segments.js";
import { toFragment } from "./share_link.js";
import { asCurl, asPython } from "./snippets.js";
import { drawTimeline, drawTotals, hiddenShare } from "./timeline.js";
import { Transcript } from "./transcript.js";
import { apiKey } from "./api.js";

const STEPS = 1000;
const SPEEDS = [0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 25];
const REPLAY_S = 6; // the initial speed is the one that comes closest to this duration
const FINISHES = { stop: "completed", length: "cut at a limit", turns: "cut at the limit of turns", stopped: "stopped by you" };
const pageUrl = () => new URL("./", document.baseURI).href.split("#")[0];

export class Answer {
  /** `actions` has the functions `retry`, `regenerate` and `decide`; without them the answer is read-only. */
  constructor(turn, { actions = null, live = false, online = true } = {}) {
    this.turn = turn;
    this.episode = turn.episode;
    this.live = live;
    this.playing = false;
    this.nextPaint = 0;
    this.now = live ? 0 : duration(this.episode);
    this.build(actions, online);
    this.transcript = new Transcript(this.body, online, actions?.decide);
    this.describe();
    this.paint();
  }

  build(actions, online) {
    this.body = el("div", { class: "transcript" });
    this.about = el("p", { class: "facts" });
    this.notice = el("p", { class: "notice", role: "note", hidden: "" });
    this.problem = el("div", { class: "problem", role: "alert", hidden: "" }, el("span"));
    this.summary = el("summary", {}, "Timeline");
    this.picture = el("div", { class: "timeline" });
    this.play = button("▶", () => this.toggle(), { "aria-label": "Replay", title: "Replay" });
    this.slider = el("input", { type: "range", class: "seek", min: 0, max: STEPS, value: STEPS, step: 1, "aria-label": "Position in the episode" });
    this.slider.addEventListener("input", () => this.seek((this.slider.value / STEPS) * duration(this.episode)));
    this.clock = el("output", { class: "clock" });
    this.speed = el("select", { class: "speed", "aria-label": "Speed of the replay", title: "Speed of the replay" }, ...SPEEDS.map((value) => el("option", { value }, `${value}×`)));
    this.totals = el("dl", { class: "totals" });
    this.time = el("details", { class: "time" }, this.summary, this.picture, el("div", { class: "playbar" }, this.play, this.slider, this.clock), el("div", { class: "under" }, this.totals, this.speed));
    this.time.addEventListener("toggle", () => {
      this.paint();
      if (this.time.contains(document.activeElement)) this.time.scrollIntoView({ block: "nearest" });
    });
    new ResizeObserver(() => this.time.open && this.paint()).observe(this.picture);
    this.bar = el("div", { class: "actions", role: "group", "aria-label": "Actions" });
    this.copy = button("Copy", () => copyText(answerText(this.episode), this.copy, "Answer"), { class: "quiet small", title: "Copy the answer as Markdown" });
    this.share = button("Link", () => this.copyLink(), { class: "quiet small share", title: "Copy a link that contains this answer" });
    this.bar.append(this.copy);
    if (actions) {
      this.bar.append(button("Regenerate", actions.regenerate, { class: "quiet small regenerate", title: "Ask again" }));
      this.problem.append(button("Try again", actions.retry, { class: "small retry" }));
    }
    if (online) this.bar.append(this.share, ...this.snippets());
    this.root = el("article", { class: "episode", tabindex: "-1", "aria-label": "Answer" }, this.body, this.notice, this.problem, el("footer", {}, this.about, this.bar), this.time);
  }

  /** Buttons that copy the request. Episodes from links of older versions don't have one. */
  snippets() {
    if (!this.episode.request.input) return [];
    const curl = button("curl", () => copyText(asCurl(this.episode.request, pageUrl(), Boolean(apiKey())), curl, "curl command"), { class: "quiet small copy-curl", title: "Copy the request as a curl command" });
    const python = button("Python", () => copyText(asPython(this.episode.request, pageUrl(), Boolean(apiKey())), python, "Program"), { class: "quiet small copy-python", title: "Copy the request as a Python program" });
    return [curl, python];
  }

  /** Update a live answer after it grew or ended. */
  grow(now, over = false) {
    this.live = !over;
    this.now = over ? duration(this.episode) : now;
    if (over) this.describe();
    const began = performance.now();
    if (!over && began < this.nextPaint) return;
    this.paint();
    this.nextPaint = performance.now() + 3 * (performance.now() - began); // a long answer leaves time for the user
  }

  /** Show the facts, the notice and the error of the answer. `doing` replaces the result while it is live. */
  describe(doing = this.live ? "waiting for the first token" : null) {
    const { episode, turn } = this;
    const tools = flushes(episode.events);
    const facts = [episode.request.model, doing ?? FINISHES[episode.finish] ?? "interrupted"];
    if (!doing) {
      facts.push(milliseconds(duration(episode)), `${tools.length} flush${tools.length === 1 ? "" : "es"}`);
      const idle = segmentsOf(episode.events, { over: true }).filter(({ state }) => state === "idle").length;
      if (idle) facts.push(`${idle} block${idle === 1 ? "" : "s"} never ran`);
    }
    if (episode.usage) facts.push(`${episode.usage.completion_tokens} tokens`);
    this.about.textContent = facts.join(" · ");
    this.notice.textContent = turn.notice ?? "";
    this.notice.hidden = !turn.notice;
    this.problem.firstChild.textContent = turn.error ?? "";
    this.problem.hidden = !turn.error;
    const length = duration(episode) / 1000;
    const wanted = SPEEDS.reduce((best, speed) => (Math.abs(length / speed - REPLAY_S) < Math.abs(length / best - REPLAY_S) ? speed : best));
    this.speed.value = wanted;
  }

  toggle() {
    if (this.live) return;
    if (this.playing) return this.pause();
    if (this.now >= duration(this.episode)) this.now = 0;
    this.time.open = true;
    this.playing = true;
    let before = performance.now();
    const step = (time) => {
      if (!this.playing || !this.root.isConnected) return;
      this.now = Math.min(this.now + Math.max(time - before, 0) * Number(this.speed.value), duration(this.episode));
      before = time;
      if (this.now >= duration(this.episode)) this.pause();
      else requestAnimationFrame(step);
      this.paint();
    };
    requestAnimationFrame(step);
    this.paint();
  }

  pause() {
    this.playing = false;
    this.buttons();
  }

  seek(ms) {
    this.pause();
    this.now = ms;
    this.paint();
  }

  async copyLink() {
    if (this.live) return;
    const url = pageUrl() + (await toFragment(this.episode));
    await copyText(url, this.share, "Link");
  }

  paint() {
    const { episode, now, live } = this;
    const end = duration(episode);
    const over = !live && now >= end;
    const events = over ? episode.events : episode.events.filter(([ms]) => ms <= now);
    this.transcript.show(segmentsOf(events, { over }));
    this.root.dataset.mode = live ? "live" : over ? "over" : "replay";
    this.root.ariaBusy = String(live);
    this.time.hidden = episode.events.length === 0;
    if (this.time.open) {
      const view = lanesOf(episode, now);
      drawTimeline(this.picture, view, live ? Math.max(now, 400) : end, now);
      drawTotals(this.totals, view.totals);
      this.clock.textContent = `${(now / 1000).toFixed(2)} s`;
      this.slider.value = live || end === 0 ? STEPS : Math.round((now / end) * STEPS);
    }
    if (over) {
      const { ran, waited } = lanesOf(episode).totals;
      const facts = ran > 0 ? ` · code ran ${milliseconds(ran)}, ${hiddenShare(lanesOf(episode).totals)} hidden · waited ${milliseconds(waited)}` : "";
      this.summary.textContent = `Timeline${facts}`;
    }
    this.buttons();
  }

  buttons() {
    const [sign, word] = this.playing ? ["❚❚", "Pause"] : ["▶", "Replay"];
    this.play.textContent = sign;
    this.play.title = word;
    this.play.setAttribute("aria-label", word);
    this.bar.hidden = this.live;
    this.play.disabled = this.slider.disabled = this.live;
  }

  /** Announce the end to screen readers. */
  announceEnd() {
    const result = this.turn.answer ? ` The answer is ${this.turn.answer}.` : "";
    announce(`Done: ${this.about.textContent}.${result}`);
  }
}
