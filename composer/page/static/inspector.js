/** The open slot: where its tile comes from, what it says, how much, when and where it counts. */

import { address } from "./api.js";
import { button, fill, h, plain, set } from "./dom.js";
import { icon } from "./icons.js";
import { showObjects } from "./objects.js";
import { coloursOf, swatches } from "./palette.js";
import { range } from "./range.js";
import { changed, conditionOf, editPart, partOf, pictureOf, place, state, watch } from "./store.js";
import { words } from "./words.js";

/** Builds the panel beside the canvas. */
export function showInspector() {
  const name = h("h2");
  const about = h("p.note");
  const sources = h("div.sources", { role: "group" });
  const text = words("Say it in words", () => ({ condition: state.selected, vocabulary: vocabularyOf(state.selected) }), (written, url) => write(written, url));
  const colours = swatches((written) => write(written, null, "colours"));
  const strength = h("input", { type: "number", min: "0", max: "2", step: "0.05" });
  Object.assign(strength, { title: "Strength: 0 is not at all, 1 as trained, up to 2" });
  strength.setAttribute("aria-label", strength.title);
  strength.addEventListener("change", () => {
    if (strength.checkValidity()) editPart(state.selected, { weight: strength.valueAsNumber });
  });
  const interval = range("Noise levels at which it counts: high ones settle the layout, low ones the detail", (ends) =>
    editPart(state.selected, { interval: ends[0] === 0 && ends[1] === 1 ? null : ends }, `interval ${state.selected}`),
  );
  const told = h("output.note");
  const where = button([icon("place"), "Place"], "Paint on the canvas where in the picture it counts", turnToPlace, { id: "place" });
  const everywhere = button("Everywhere", "Let it count in the whole picture", () => {
    editPart(state.selected, { place: null });
    state.stage = "region";
    changed();
  });
  const how = h(
    "div.how",
    {},
    h("label.field", { title: strength.title }, h("span", {}, "Strength"), strength),
    h("div.field", {}, h("span", {}, "Noise"), interval.element, told),
    h("div.row", {}, where, everywhere),
  );
  const usual = h("div.usual", {}, sources, colours.element, text.element, how);
  const objects = showObjects();
  const none = h("p.none", {}, "Click a tile, or open a slot to write words.");
  const panel = h("aside.inspector", { "aria-label": "The open slot" }, h("div.row", {}, name), about, usual, objects, none);

  watch(({ model, selected }) => {
    const condition = conditionOf(selected);
    const part = partOf(selected);
    none.hidden = Boolean(selected);
    usual.hidden = !condition;
    objects.hidden = selected !== "objects";
    name.textContent = selected ?? "Composition";
    about.textContent = condition?.about ?? "";
    if (!model || !condition) return;
    showSources(sources, selected, part);
    const written = part?.text ?? pictureOf(part?.picture)?.tiles.find((tile) => tile.condition === selected)?.words ?? "";
    const isPalette = selected === "palette" && (!written || coloursOf(written));
    colours.element.hidden = !isPalette || !written;
    text.element.hidden = !condition.from_words || (isPalette && Boolean(written));
    if (isPalette && written) colours.show(written);
    text.show(written);
    how.hidden = part === null;
    set(strength, "value", String(part?.weight ?? 1));
    const ends = part?.interval ?? [0, 1];
    interval.show(ends);
    told.textContent = ends.map(plain).join("–");
    where.hidden = state.board.task === "compose"; // there the canvas shows nothing else
    where.setAttribute("aria-pressed", String(state.stage === "place"));
    everywhere.disabled = !part?.place;
  });
  return panel;
}

/** Words go into the open slot. */
function write(text, url, key = null) {
  const condition = state.selected;
  const part = partOf(condition);
  const shown = part && (part.text ?? pictureOf(part.picture)?.tiles.find((tile) => tile.condition === condition)?.words);
  if (text === (shown ?? "")) return;
  if (!part && text) place({ condition, text, url });
  else if (part && text) editPart(condition, { text, url, picture: undefined, recipe: undefined }, key ?? `words ${condition}`);
}

function turnToPlace() {
  state.stage = state.stage === "place" ? "region" : "place";
  changed();
  if (state.stage === "place") document.getElementById("canvas").focus();
}

function vocabularyOf(condition) {
  return conditionOf(condition)?.kind === "text" ? state.model.vocabulary : null;
}

/** The tiles of all pictures for this condition. */
function showSources(element, condition, part) {
  const tiles = state.pictures.flatMap((picture) => picture.tiles.filter((tile) => tile.condition === condition && tile.url).map((tile) => ({ picture, tile })));
  const key = JSON.stringify([condition, part?.picture, tiles.map(({ picture }) => picture.id)]);
  if (element.dataset.key === key) return;
  const focused = element.contains(document.activeElement) ? [...element.children].indexOf(document.activeElement) : -1;
  element.dataset.key = key;
  element.setAttribute("aria-label", `Pictures to take ${condition} from`);
  fill(
    element,
    tiles.map(({ picture, tile }) => {
      const about = `Take ${condition} from ${picture.name}`;
      const made = button(h("img", { src: address(tile.url), alt: "" }), about, () => place({ condition, picture: picture.id }));
      made.setAttribute("aria-pressed", String(part?.picture === picture.id));
      return made;
    }),
  );
  element.children[focused]?.focus();
}
