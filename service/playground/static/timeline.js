// Draws lanes to scale.
import { el, svg } from "./dom.js";
import { MIN_CONTAINER_WAIT_MS } from "./lanes.js";
import { milliseconds } from "./segments.js";

const ROW = 24;
const BAR = 12;
const AXIS = 22;
const LEFT = { wide: 84, narrow: 66 };
const RIGHT = 60;
const WORDS = { write: "wrote", run: "ran", failed: "ran and failed", wait: "waited", container: "waited for a container" };

/** Draw the result of lanesOf into `root`, with `total` ms on the axis and a playhead at `now`. */
export function drawTimeline(root, { lanes, totals, flushed }, total, now) {
  const width = Math.max(root.clientWidth, 240);
  const left = matchMedia("(max-width: 860px)").matches ? LEFT.narrow : LEFT.wide;
  const height = lanes.length * ROW + AXIS;
  const x = (ms) => left + ((width - left - RIGHT) * ms) / Math.max(total, 1);
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": describeTotals(totals) });
  axis(picture, x, total, height);
  for (const at of flushed) picture.append(svg("line", { class: "flush", x1: x(at), x2: x(at), y1: 2, y2: height - AXIS }));
  lanes.forEach((lane, row) => picture.append(...laneOf(lane, row * ROW + ROW / 2, x, width)));
  if (now < total) picture.append(svg("line", { class: "playhead", x1: x(now), x2: x(now), y1: 0, y2: height - AXIS }));
  root.replaceChildren(picture);
}

function laneOf({ name, spans, thread, marks }, y, x, width) {
  const nodes = [svg("text", { class: "lane", x: 0, y: y + 4 }, name)];
  if (thread) {
    const line = svg("line", { class: "thread-line", x1: x(thread[0]), x2: x(thread[1]), y1: y, y2: y });
    line.append(svg("title", {}, `${name}: closed at ${milliseconds(thread[0])}, delivered at ${milliseconds(thread[1])}`));
    nodes.push(line, svg("circle", { class: "closed", cx: x(thread[0]), cy: y, r: 3 }));
  }
  for (const { start, end, kind } of spans) {
    const w = Math.max(x(end) - x(start), 3);
    const bar = svg("rect", { class: `bar ${kind}`, x: x(start), y: y - BAR / 2, width: w, height: BAR, rx: Math.min(3, w / 2) });
    bar.append(svg("title", {}, `${name}: ${WORDS[kind]} ${milliseconds(end - start)}, from ${milliseconds(start)}`));
    nodes.push(bar);
  }
  for (const mark of marks) nodes.push(svg("line", { class: "mark", x1: x(mark), x2: x(mark), y1: y - BAR / 2, y2: y + BAR / 2 }));
  const sum = spans.reduce((total, { start, end }) => total + end - start, 0);
  nodes.push(svg("text", { class: "sum", x: width, y: y + 4, "text-anchor": "end" }, spans.length ? milliseconds(sum) : ""));
  return nodes;
}

function axis(picture, x, total, height) {
  const steps = [1, 2, 5].flatMap((n) => [0, 1, 2, 3, 4, 5, 6].map((power) => n * 10 ** power)).sort((a, b) => a - b);
  const step = steps.find((size) => total / size <= 6) ?? total;
  for (let at = 0; at <= total; at += step) {
    picture.append(
      svg("line", { class: "grid", x1: x(at), x2: x(at), y1: 0, y2: height - AXIS + 4 }),
      svg("text", { class: "tick", x: x(at), y: height - 5, "text-anchor": "middle" }, step < 1000 && total < 1000 ? `${at} ms` : `${at / 1000} s`),
    );
  }
}

export const hiddenShare = ({ ran, hidden }) => (ran > 0 ? `${Math.round((100 * hidden) / ran)} %` : "–");

/** Describe the picture for screen readers. */
function describeTotals(totals) {
  const { written, ran, waited, hidden, container } = totals;
  const leasing = container >= MIN_CONTAINER_WAIT_MS ? ` The first block waited ${milliseconds(container)} for a container.` : "";
  return `The model wrote for ${milliseconds(written)}; code ran for ${milliseconds(ran)}, of which ${milliseconds(hidden)} passed while the model was writing; it waited ${milliseconds(waited)}.${leasing}`;
}

/** Draw the sums below the picture, as pairs of a <dl>. */
export function drawTotals(root, totals) {
  const { written, ran, waited, container, executed, delayed } = totals;
  const facts = [
    ["write", "wrote", milliseconds(written)],
    ["run", "ran", milliseconds(ran)],
    ["wait", "waited", milliseconds(waited)],
    ...(container >= MIN_CONTAINER_WAIT_MS ? [["container", "for a container", milliseconds(container)]] : []),
    ["hidden", "hidden", hiddenShare(totals)],
    ["delayed", "delayed", executed ? `${delayed} of ${executed} blocks` : "–"],
  ];
  root.replaceChildren(...facts.map(([kind, name, value]) => el("div", { class: `total ${kind}` }, el("dt", {}, name), el("dd", {}, value))));
}
