/** The left column: pictures, each taken apart into tiles. */

import { address, readSamples, sendPicture, takeSample } from "./api.js";
import { attempt, button, clamp, fill, h, say } from "./dom.js";
import { draggable } from "./dragging.js";
import { icon } from "./icons.js";
import { returnTo } from "./session.js";
import { addPicture, changed, edit, partOf, pictureOf, place, state, watch } from "./store.js";

const cards = new Map();

/** Builds the column. */
export function showPictures(column) {
  const input = h("input", { type: "file", accept: "image/*", multiple: true, hidden: true, id: "file" });
  input.addEventListener("change", async () => {
    await takeFiles([...input.files]);
    input.value = "";
  });
  const open = button([icon("open"), "Open…"], "Choose picture files from this machine (O)", () => input.click(), { id: "open" });
  const samples = h("select", { id: "samples", title: "Take one of the pictures that come along", "aria-label": "Sample pictures" });
  samples.append(h("option", { value: "" }, "Samples"));
  samples.addEventListener("change", async () => {
    const name = samples.value;
    samples.value = "";
    if (name) await attempt(() => bring(name, () => takeSample(name)));
  });
  attempt(async () => {
    for (const sample of await readSamples()) samples.append(h("option", { value: sample.name, title: sample.about }, sample.name));
  });
  const list = h("div.cards", { tabIndex: -1 });
  const empty = h(
    "div.empty",
    {},
    h("strong", {}, "Drop pictures here"),
    h("span", {}, "or paste one, open a file, take a sample. Each is taken apart into tiles. A PNG that was drawn here brings its whole board back."),
  );
  fill(column, h("div.bar", {}, h("h2", {}, "Pictures"), samples, open, input), list);
  watch(() => {
    const wanted = state.pictures.map((picture) => cardOf(picture));
    if (!wanted.length) wanted.push(empty);
    if (wanted.length !== list.children.length || wanted.some((card, i) => card !== list.children[i])) fill(list, wanted);
    for (const picture of state.pictures) update(picture);
  });
}

function cardOf(picture) {
  if (cards.has(picture.id)) return cards.get(picture.id).card;
  const thumb = h("img.thumb", { src: address(picture.thumb ?? picture.url), alt: "", draggable: false });
  const whole = h("button.whole", { type: "button", title: "Drag to a slot to take that condition from this picture; click to edit it" }, thumb);
  whole.setAttribute("aria-label", `Edit ${picture.name}`);
  whole.addEventListener("click", () => editPicture(picture.id));
  draggable(whole, () => ({ picture: picture.id, condition: null, url: picture.url }));
  const tiles = picture.tiles.map((tile) => tileOf(picture, tile));
  const away = button(icon("close"), `Take ${picture.name} off the page`, () => {
    state.pictures = state.pictures.filter((other) => other !== picture);
    cards.delete(picture.id);
    changed();
  });
  away.classList.add("quiet");
  const name = h("span.name", { title: picture.name }, picture.name);
  const size = h("span.note", {}, `${picture.width} × ${picture.height}`);
  const change = button([icon("pen"), "Edit"], "Edit a region of this picture", () => editPicture(picture.id));
  change.classList.add("small");
  const top = h("div.top", {}, whole, h("div.about", {}, name, size, h("div.row", {}, change, away)));
  const card = h("article.card", { "aria-label": picture.name }, top, h("div.tiles", {}, tiles));
  cards.set(picture.id, { card, tiles });
  return card;
}

function tileOf(picture, tile) {
  const label = tile.words ? `${tile.condition}: ${tile.words}` : tile.condition;
  const face = tile.url ? h("img", { src: address(tile.url), alt: "", draggable: false }) : h("span.words", {}, tile.words ?? "");
  const made = h("button.tile", { type: "button", title: `${label}. Click or drag it into the composition`, "aria-pressed": "false" }, face, h("span", {}, tile.condition));
  made.setAttribute("aria-label", `Take ${label} from ${picture.name}`);
  made.dataset.condition = tile.condition;
  const part = () => ({ condition: tile.condition, picture: picture.id });
  made.addEventListener("click", () => place(part()));
  draggable(made, () => ({ ...part(), url: tile.url }));
  return made;
}

function update(picture) {
  const { card, tiles } = cards.get(picture.id);
  card.classList.toggle("chosen", state.board.task !== "compose" && state.board.picture === picture.id);
  for (const tile of tiles) {
    const used = partOf(tile.dataset.condition)?.picture === picture.id;
    tile.setAttribute("aria-pressed", String(used));
  }
}

/** A share of a picture's shorter side in pixels: how far a change fades in. */
export function pixelsOf(share, picture) {
  const pixels = Math.round(share * Math.min(picture.width, picture.height));
  return clamp(pixels, share === 0 ? 0 : 1, state.model.limits.soften ?? 256);
}

/** Turns to the editing of a picture. */
export function editPicture(id, task = "edit") {
  edit((board) => {
    if (board.picture !== id) Object.assign(board, { region: null, by: [0, 0, 0, 0], soften: Math.max(2, pixelsOf(0.005, pictureOf(id))) });
    Object.assign(board, { task, picture: id });
  });
  state.stage = "region";
}

async function bring(name, send) {
  say(`${name} is being taken apart …`);
  const picture = await send();
  addPicture(picture);
  say([`${picture.name} is taken apart: click its tiles.`, ...picture.notes].join(" "));
  return picture;
}

/** Takes in files: pictures become tiles, a picture of ours its board. */
export async function takeFiles(files) {
  for (const file of files) {
    await attempt(async () => {
      const picture = await bring(file.name, () => sendPicture(file, file.name));
      if (!picture.board) return;
      await returnTo(picture.board);
      say(`The board is set as it was when ${picture.name} was drawn.`);
    });
  }
}

/** Makes a picture that was drawn one to work with. */
export const takeResult = (blob, name) => attempt(() => bring(name, () => sendPicture(blob, name)));
