/** What this tab shows, so that it is all there again after a reload. */

import { readPictures } from "./api.js";
import { fromServer } from "./marks.js";
import { addPicture, restore, state, watch } from "./store.js";

const KEY = "composer";

/** Keeps what is on the board from now on. */
export function remember() {
  watch(({ board, pictures, current, shown }) => {
    const kept = { board, current, shown, pictures: pictures.map(({ id }) => id) };
    try {
      sessionStorage.setItem(KEY, JSON.stringify(kept));
    } catch {
      sessionStorage.removeItem(KEY); // strokes too many for the browser's storage
    }
  });
}

/** Brings back what this tab showed; a new tab begins with an empty board. */
export async function recall() {
  const kept = JSON.parse(sessionStorage.getItem(KEY) ?? "null");
  if (!kept) return;
  await bringPictures(kept.pictures.reverse());
  setBoard(kept.board, kept.board.parent);
  const job = state.jobs.find(({ id }) => id === kept.current);
  if (job) Object.assign(state, { current: job.id, shown: kept.shown });
}

/** Shows those of the server's pictures that are named. */
export async function bringPictures(ids) {
  if (ids.every((id) => state.pictures.some((picture) => picture.id === id))) return;
  const known = new Map((await readPictures()).map((picture) => [picture.id, picture]));
  for (const id of ids) if (known.has(id)) addPicture(known.get(id));
}

/** The pictures that a board is made of. */
const picturesOf = ({ picture, parts = [], away = [] }) => [picture, ...[...parts, ...away].map((part) => part.picture ?? part.recipe)].filter(Boolean);

/** Sets a board as it was, with its pictures; what is drawn next is a branch of `parent`. */
export async function returnTo(board, parent = null) {
  await bringPictures(picturesOf(board));
  setBoard(board, parent);
}

function setBoard(board, parent) {
  const placed = (parts) => (parts ?? []).map((part) => ({ ...part, place: fromServer(part.place) }));
  restore({ ...board, region: fromServer(board.region), parts: placed(board.parts), away: placed(board.away) }, parent);
}
