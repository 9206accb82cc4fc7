/** AND and NOT: further captions to follow, and captions to avoid, each with its weight. */

import { button, h, set } from "./dom.js";
import { icon } from "./icons.js";
import { edit, watch } from "./store.js";

const SIDES = {
  also: { label: "AND", about: "A further caption to follow", weight: 3, example: "a blue ball on snow" },
  never: { label: "NOT", about: "A caption to avoid", weight: 1, example: "under a night sky" },
};

/** Builds both lists. */
export function showSteer() {
  return h("div.steer", {}, Object.keys(SIDES).map(list));
}

function list(side) {
  const { label, about, weight } = SIDES[side];
  const rows = h("div.rows");
  const add = button([icon("plus"), label], `${about}: add one`, () => {
    edit((board) => board[side].push({ words: "", weight }));
    queueMicrotask(() => rows.lastChild?.querySelector("input").focus());
  });
  add.classList.add("small", "add");
  watch(({ board, model }) => {
    while (rows.children.length > board[side].length) rows.lastChild.remove();
    while (rows.children.length < board[side].length) rows.append(row(side, rows.children.length));
    board[side].forEach((one, i) => {
      const [words, amount] = rows.children[i].querySelectorAll("input");
      set(words, "value", one.words);
      if (document.activeElement !== amount) set(amount, "value", String(one.weight));
    });
    add.disabled = !model || board[side].length > 60;
  });
  return h("div.side", { role: "group", "aria-label": about }, add, rows);
}

function row(side, i) {
  const { label, about, example } = SIDES[side];
  const words = h("input", { type: "text", title: about, "aria-label": `${label} ${i + 1}: ${about}`, placeholder: example });
  words.addEventListener("input", () => edit((board) => (board[side][i].words = words.value), `${side}${i}`));
  const told = "How much it counts";
  const amount = h("input", { type: "number", min: "0", max: "20", step: "0.5", title: told, "aria-label": `${label} ${i + 1}: ${told}` });
  amount.addEventListener("change", () => amount.checkValidity() && edit((board) => (board[side][i].weight = amount.valueAsNumber)));
  const away = button(icon("close"), "Remove this caption", () => edit((board) => board[side].splice(i, 1)));
  away.classList.add("quiet");
  return h("div.steering", {}, words, amount, away);
}

/** Those lists without empty rows. */
export const steered = (board) => ({
  also: board.also.filter(({ words }) => words.trim()),
  never: board.never.filter(({ words }) => words.trim()),
});
