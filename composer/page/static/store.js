/** What the page knows, and who wants to be told when it changes. */

export const EMPTY = {
  task: "compose",
  picture: null,
  region: null, // as `marks.js` keeps it
  by: [0, 0, 0, 0],
  keep: [],
  parts: [],
  away: [],
  also: [],
  never: [],
  objects: [],
  seeds: [0, 1],
  best_of: null,
  steps: null,
  guidance: null,
  until: null,
  size: null,
  soften: null,
  parent: null,
};

export const state = {
  model: null,
  pictures: [],
  board: { ...EMPTY },
  selected: null, // the condition whose slot is open
  jobs: [],
  stage: "region", // what the canvas shows: the "region" of the picture, the "place" of a part, or "objects"
  current: null, // the job that the result shows
  shown: 0, // which of its pictures
};

const listeners = new Set();
const past = [];
const future = [];
let waiting = false;

/** Calls `listen` after every change, and once now. */
export function watch(listen) {
  listeners.add(listen);
  listen(state);
}

/** Tells all who watch, once for all changes of this turn. */
export function changed() {
  if (waiting) return;
  waiting = true;
  queueMicrotask(() => {
    waiting = false;
    for (const listen of listeners) listen(state);
  });
}

let lastKey = null;

/** A copy of plain data; what is frozen, such as a stroke of a brush, is shared. */
export function copy(value) {
  if (value === null || typeof value !== "object" || Object.isFrozen(value)) return value;
  if (Array.isArray(value)) return value.map(copy);
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, copy(inner)]));
}

/**
 * Changes the board so that it can be undone.
 * @param {(board: object) => void} change changes it in place
 * @param {string|null} key changes in a row with the same key, such as those of one slider, are undone together
 */
export function edit(change, key = null) {
  if (key === null || key !== lastKey) past.push(copy(state.board));
  if (past.length > 200) past.shift();
  lastKey = key;
  future.length = 0;
  change(state.board);
  changed();
}

function step(from, to) {
  if (!from.length) return false;
  to.push(state.board);
  state.board = from.pop();
  lastKey = null;
  changed();
  return true;
}

export const undo = () => step(past, future);
export const redo = () => step(future, past);

export const pictureOf = (id) => state.pictures.find((picture) => picture.id === id) ?? null;
export const conditionOf = (name) => state.model?.conditions.find((condition) => condition.name === name) ?? null;
export const partOf = (name, side = "parts") => state.board[side].find((part) => part.condition === name) ?? null;
export const jobOf = (id) => state.jobs.find((job) => job.id === id) ?? null;

/** The preview of a part: its picture's tile, or what the server shows for it. */
export function previewOf(part) {
  const tile = pictureOf(part.picture ?? part.recipe)?.tiles.find((tile) => tile.condition === part.condition);
  return part.url ?? tile?.url ?? null;
}

/** Puts a part into its slot, in place of what was there; strength and place of the slot stay. */
export function place(part, side = "parts") {
  edit((board) => {
    const before = board[side].find((other) => other.condition === part.condition);
    const kept = before ? { weight: before.weight, interval: before.interval, place: before.place } : {};
    board[side] = [...board[side].filter((other) => other !== before), { ...kept, ...part }];
  });
  state.selected = part.condition;
}

/** Empties a slot. */
export function remove(condition, side = "parts") {
  edit((board) => (board[side] = board[side].filter((part) => part.condition !== condition)));
}

/** Changes one part in place. */
export function editPart(condition, change, key = null) {
  edit((board) => Object.assign(board.parts.find((part) => part.condition === condition) ?? {}, change), key);
}

/** Adds a picture that the server has, once. */
export function addPicture(picture) {
  if (!pictureOf(picture.id)) state.pictures.unshift(picture);
  changed();
}

/** Sets everything as it was when a board was drawn. */
export function restore(board, parent = null) {
  edit(() => (state.board = { ...copy(EMPTY), ...copy(board), parent }));
  state.selected = state.board.parts[0]?.condition ?? null;
}
