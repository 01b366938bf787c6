// Shows an episode live, at its end, or replayed at any moment.
import { byId } from "./dom.js";
import { duration } from "./episode.js";
import { lanesOf } from "./lanes.js";
import { segmentsOf } from "./segments.js";
import { drawTimeline, drawTotals } from "./timeline.js";
import { Transcript } from "./transcript.js";

const STEPS = 1000;

export class Replay {
  constructor() {
    this.episode = null;
    this.live = false;
    this.now = 0;
    this.playing = false;
    this.transcript = new Transcript(byId("transcript"));
    byId("play").addEventListener("click", () => this.toggle());
    byId("seek").addEventListener("input", (event) => this.seek((event.target.value / STEPS) * duration(this.episode)));
    new ResizeObserver(() => this.paint()).observe(byId("timeline"));
  }

  /** Show `episode` at its end, or `live` while it still grows. */
  show(episode, { live = false } = {}) {
    this.pause();
    this.episode = episode;
    this.live = live;
    this.now = duration(episode);
    byId("episode").hidden = false;
    byId("empty").hidden = true;
    byId("about-question").textContent = episode.request.messages.findLast?.(({ role }) => role === "user")?.content ?? "";
    this.paint();
  }

  /** Update a live episode after it grew or ended. */
  grow(now, over = false) {
    this.live = !over;
    this.now = over ? duration(this.episode) : now;
    this.paint();
  }

  toggle() {
    if (!this.episode || this.live) return;
    if (this.playing) return this.pause();
    if (this.now >= duration(this.episode)) this.now = 0;
    this.playing = true;
    let before = performance.now();
    const step = (time) => {
      if (!this.playing) return;
      this.now = Math.min(this.now + time - before, duration(this.episode));
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
    if (this.episode) this.buttons();
  }

  seek(ms) {
    this.pause();
    this.now = ms;
    this.paint();
  }

  paint() {
    const { episode, now, live } = this;
    if (!episode) return;
    const end = duration(episode);
    const over = !live && now >= end;
    const events = over ? episode.events : episode.events.filter(([ms]) => ms <= now);
    this.transcript.show(segmentsOf(events, { over }));
    byId("episode").dataset.mode = live ? "live" : over ? "over" : "replay";
    const view = lanesOf(episode, now);
    drawTimeline(byId("timeline"), view, live ? Math.max(now, 400) : end, now);
    drawTotals(byId("totals"), view.totals);
    byId("clock").textContent = `${(now / 1000).toFixed(2)} s`;
    byId("seek").value = live || end === 0 ? STEPS : Math.round((now / end) * STEPS);
    this.buttons();
  }

  buttons() {
    const play = byId("play");
    const [sign, word] = this.playing ? ["❚❚", "Pause"] : ["▶", "Replay"];
    play.textContent = sign;
    play.title = word;
    play.setAttribute("aria-label", word);
    play.disabled = byId("seek").disabled = byId("share").disabled = this.live;
  }
}
