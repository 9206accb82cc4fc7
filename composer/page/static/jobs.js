/** Drawing: boards go to the server, events come back. One job is followed at a time, since browsers hold few connections. */

import { cancel, draw, follow, readJobs, spell } from "./api.js";
import { attempt, say, sayError } from "./dom.js";
import { fromServer, toServer } from "./marks.js";
import { returnTo } from "./session.js";
import { steered } from "./steer.js";
import { changed, copy, jobOf, pictureOf, state } from "./store.js";

const OPEN = ["queued", "drawing"];
let followed = null; // {id, stop}

/** The board as the server takes it: marks as boxes or masks. */
export async function given(board) {
  const { size } = state.model;
  const picture = board.task === "compose" ? null : pictureOf(board.picture);
  if (board.task !== "compose" && !picture) throw new Error(`${board.task} needs a picture: drop, paste or open one`);
  const region = picture && board.task !== "outpaint" ? await toServer(fromServer(board.region), picture.width, picture.height) : null;
  if (board.task === "edit" && !region) throw new Error("edit needs a region: paint on the picture what may change");
  const placed = (parts) => Promise.all(parts.map(async (part) => ({ ...part, place: await toServer(fromServer(part.place), size, size) })));
  const grown = board.task === "edit" || board.task === "outpaint"; // as large as the picture
  const objects = board.objects.filter(({ phrase }) => phrase.trim());
  return { ...copy(board), ...steered(board), picture: picture?.id ?? null, region, parts: await placed(board.parts), away: await placed(board.away), objects, size: grown ? null : board.size };
}

/** Draws what is on the board. */
export const start = () =>
  attempt(async () => {
    const board = copy(state.board);
    const sent = await given(board);
    const id = await draw(sent);
    const job = { id, board, state: "queued", pictures: [], parent: board.parent, made: new Date().toISOString() };
    Object.assign(job, { began: performance.now(), previews: [], progress: null });
    state.jobs.push(job);
    Object.assign(state, { current: id, shown: 0 });
    state.board.parent = id;
    changed();
    followNext();
    return job;
  });

/** Cancels the job that is shown, or else the one that runs. */
export const stop = () =>
  attempt(async () => {
    const job = [jobOf(state.current), ...state.jobs].find((one) => one && OPEN.includes(one.state));
    if (!job) return;
    await cancel(job.id);
    if (followed?.id !== job.id) end(job, "cancelled");
  });

export const isOpen = (job) => job !== null && OPEN.includes(job.state);

function followNext() {
  if (followed || document.hidden) return;
  const job = state.jobs.find((one) => OPEN.includes(one.state));
  if (!job) return;
  followed = { id: job.id, stop: follow(job.id, (kind, data) => hear(job, kind, data)) };
}

function hear(job, kind, data) {
  if (kind === "queued") job.position = data.position;
  else if (kind === "step") Object.assign(job, { state: "drawing", progress: data });
  else if (kind === "preview") {
    Object.assign(job, { previews: data.urls, box: data.box ?? null });
    job.firstPreview ??= performance.now() - job.began;
  } else if (kind === "picture") job.pictures[data.index] = data;
  else {
    if (kind === "failed") sayError(data.error);
    if (kind === "done") say(told(job, data.seconds));
    if (kind === "cancelled") say("Cancelled.");
    followed = null;
    end(job, kind);
    return followNext();
  }
  changed();
}

function end(job, kind) {
  Object.assign(job, { state: kind, progress: null });
  if (kind !== "done" && state.board.parent === job.id) state.board.parent = job.parent;
  changed();
}

const told = (job, seconds) => `${job.pictures.length === 1 ? "One picture" : `${job.pictures.length} pictures`} in ${seconds.toFixed(1)} s.`;

addEventListener("visibilitychange", () => {
  if (document.hidden) {
    followed?.stop(); // other tabs need the connection
    followed = null;
  } else followNext();
});

/** What the server has drawn before this page was loaded. */
export async function readHistory() {
  const before = await readJobs();
  state.jobs = before.map((job) => ({ previews: [], progress: null, began: performance.now(), ...job }));
  changed();
  followNext();
}

/** Returns to an entry of the history: its board and its pictures; what is drawn next is a branch of it. */
export const goTo = (job) =>
  attempt(async () => {
    await returnTo(job.board, job.state === "done" ? job.id : job.parent);
    Object.assign(state, { current: job.id, shown: 0 });
    changed();
  });

/** Copies what the board is on the command line, or in Python. */
export const copyAs = (language) =>
  attempt(async () => {
    const { [language]: text } = await spell(await given(state.board));
    await navigator.clipboard.writeText(text);
    say(`Copied: ${text.split("\n")[0].slice(0, 160)}`);
  });
