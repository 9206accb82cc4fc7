/** What was drawn, as a tree: each entry can be returned to, and what is drawn then is a branch of it. */

import { address } from "./api.js";
import { h } from "./dom.js";
import { goTo } from "./jobs.js";
import { state, watch } from "./store.js";

const STEP = 52; // pixels from one entry to the next
const SIDE = 44;

/** Builds the history. */
export function showHistory() {
  const lines = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  lines.setAttribute("aria-hidden", "true");
  const entries = h("div.entries", { role: "list" });
  const tree = h("div.tree", {}, lines, entries);
  const scroller = h("div.scroller", {}, tree);
  const none = h("p.none", {}, "Each drawing becomes an entry to return to; what is drawn from it then is a branch.");
  let before = "";
  watch(() => {
    none.hidden = state.jobs.length > 0;
    const key = JSON.stringify([state.current, state.jobs.map((job) => [job.id, job.parent, job.state, job.pictures[0]?.url])]);
    if (key === before) return;
    before = key;
    const places = layout(state.jobs);
    show(entries, places);
    connect(lines, places);
    entries.querySelector("[aria-current]")?.scrollIntoView({ block: "nearest", inline: "nearest" });
  });
  return h("div.history", { "aria-label": "History" }, h("h3", { title: "Click an entry to return to its board" }, "History"), scroller, none);
}

/**
 * Where each entry lies: the first child goes on in the lane of its parent, others open a lane.
 * @returns {Map<string, {job: object, x: number, y: number}>}
 */
export function layout(jobs) {
  const places = new Map();
  const continued = new Set();
  let lanes = 0;
  for (const job of jobs) {
    const parent = places.get(job.parent);
    const first = parent && !continued.has(job.parent);
    if (parent) continued.add(job.parent);
    places.set(job.id, { job, x: parent ? parent.x + 1 : 0, y: first ? parent.y : lanes++ });
  }
  return places;
}

function show(entries, places) {
  const old = new Map([...entries.children].map((entry) => [entry.dataset.job, entry]));
  const focused = document.activeElement?.dataset?.job;
  const now = [...places.values()].map(({ job, x, y }) => {
    const entry = old.get(job.id) ?? make(job);
    entry.style.translate = `${x * STEP}px ${y * STEP}px`;
    entry.className = `entry ${job.state}`;
    if (job.id === state.current) entry.setAttribute("aria-current", "true");
    else entry.removeAttribute("aria-current");
    const url = job.pictures[0]?.url;
    const image = entry.firstChild;
    if (url && image.dataset.url !== url) Object.assign(image, { src: address(url) }).dataset.url = url;
    image.hidden = !url;
    return entry;
  });
  if (now.some((entry, i) => entry !== entries.children[i]) || now.length !== entries.children.length) entries.replaceChildren(...now);
  if (focused) entries.querySelector(`[data-job="${CSS.escape(focused)}"]`)?.focus();
}

function make(job) {
  const made = new Date(job.made).toLocaleTimeString();
  const parts = (job.board.parts ?? []).map(({ condition }) => condition).join(", ");
  const about = `Return to ${job.board.task}${parts && `: ${parts}`} (${made})`;
  const entry = h("button", { type: "button", title: about, "aria-label": about, data: { job: job.id } }, h("img", { alt: "", draggable: false, hidden: true }));
  entry.addEventListener("click", () => goTo(job));
  return entry;
}

function connect(lines, places) {
  const ends = [...places.values()];
  const middle = (at) => at * STEP + SIDE / 2;
  const paths = ends
    .filter(({ job }) => places.has(job.parent))
    .map(({ job, x, y }) => {
      const from = places.get(job.parent);
      const path = document.createElementNS(lines.namespaceURI, "path");
      path.setAttribute("d", `M${middle(from.x)} ${middle(from.y)}V${middle(y) - 8 * (y > from.y)}${y > from.y ? "q0 8 8 8" : ""}H${middle(x)}`);
      return path;
    });
  const [width, height] = ["x", "y"].map((axis) => (Math.max(-1, ...ends.map((end) => end[axis])) + 1) * STEP);
  lines.setAttribute("width", width);
  lines.setAttribute("height", height);
  lines.parentElement.style.width = `${width}px`;
  lines.parentElement.style.height = `${height}px`;
  lines.replaceChildren(...paths);
}
