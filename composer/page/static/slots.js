/** The slots of the composition: one for each condition, with its tile and its strength. */

import { address } from "./api.js";
import { button, fill, h, plain, set } from "./dom.js";
import { icon } from "./icons.js";
import { changed, editPart, partOf, previewOf, remove, state, watch } from "./store.js";
import { coloursOf } from "./palette.js";

/** Builds the slots of one side: "parts", or "away" for what guidance leads away from. */
export function showSlots(side = "parts") {
  const grid = h(`div.slots.${side}`, { role: "group", "aria-label": side === "parts" ? "What to draw" : "What to lead away from", data: { sideArea: side } });
  const slots = new Map();
  watch(({ model }) => {
    if (!model) return;
    if (!slots.size) {
      for (const condition of model.conditions) slots.set(condition.name, slot(condition, side));
      fill(grid, [...slots.values()].map(({ card }) => card), side === "parts" && model.objects ? objects() : null);
    }
    for (const one of slots.values()) one.update();
  });
  return grid;
}

function slot({ name, about }, side) {
  const face = h("span.face");
  const note = h("span.note");
  const open = h("button.open", { type: "button", title: about, on: { click: () => select(name) } }, face, h("span.name", {}, name), note);
  const told = `Strength of ${name}: 0 is not at all, 1 as trained, up to 2`;
  const strength = h("input", { type: "range", min: "0", max: "2", step: "0.05", title: told, "aria-label": told });
  strength.addEventListener("input", () => editPart(name, { weight: strength.valueAsNumber }, `strength ${name}`));
  const clear = button(icon("close"), `Take ${name} out of the composition`, () => remove(name, side));
  clear.classList.add("quiet", "clear");
  const card = h("div.slot", { data: { slot: name, side } }, open, clear, side === "parts" ? strength : null);
  card.addEventListener("keydown", (event) => {
    if (event.key !== "Delete" || event.target.matches("input")) return;
    remove(name, side);
  });
  const update = () => {
    const part = partOf(name, side);
    card.classList.toggle("full", part !== null);
    card.classList.toggle("selected", side === "parts" && state.selected === name);
    open.setAttribute("aria-pressed", String(state.selected === name));
    open.setAttribute("aria-label", `${name}: ${part ? tell(part) : "empty"}. ${about}`);
    set(strength, "value", String(part?.weight ?? 1));
    strength.disabled = clear.disabled = part === null;
    note.textContent = part ? tell(part) : "";
    show(face, part);
  };
  return { card, update };
}

function tell(part) {
  const [low, high] = part.interval ?? [0, 1];
  const when = low > 0 || high < 1 ? ` @${plain(low)}–${plain(high)}` : "";
  return `×${plain(part.weight ?? 1)}${when}${part.place ? " in a place" : ""}`;
}

/** The tile of a part: a picture, colours or words. */
function show(face, part) {
  const key = part ? JSON.stringify([part.picture, part.text, part.url]) : "";
  if (face.dataset.key === key) return;
  face.dataset.key = key;
  const url = part && previewOf(part);
  const colours = part?.condition === "palette" && part.text ? coloursOf(part.text) : null;
  if (colours) {
    fill(face, colours.map(({ colour, share }) => {
      const strip = h("i");
      strip.style.background = colour;
      strip.style.flexGrow = String(share);
      return strip;
    }));
  } else if (url && !part.text) fill(face, h("img", { src: address(url), alt: "", draggable: false }));
  else fill(face, part ? h("span.words", {}, part.text ?? "") : icon("plus"));
}

function select(name) {
  state.selected = name;
  if (state.stage === "objects") state.stage = "region";
  changed();
}

function objects() {
  const note = h("span.note");
  const open = h("button.open", { type: "button", title: "Boxes, each with words for what is in it" }, h("span.face", {}, icon("box")), h("span.name", {}, "objects"), note);
  open.addEventListener("click", () => {
    Object.assign(state, { selected: "objects", stage: "objects" });
    changed();
  });
  const card = h("div.slot", {}, open);
  watch(() => {
    const { length } = state.board.objects;
    card.classList.toggle("full", length > 0);
    card.classList.toggle("selected", state.selected === "objects");
    note.textContent = length ? String(length) : "";
  });
  return card;
}
