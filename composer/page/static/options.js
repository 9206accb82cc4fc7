/** How to draw: seeds, best-of, steps, guidance, how far and how large. */

import { button, field, h, say, set } from "./dom.js";
import { icon } from "./icons.js";
import { edit, state, watch } from "./store.js";

const SIZES = new Map(); // what stands in the list -> what it says on the board

/** The sizes to choose from: the model's own, other shapes of it, twice as large, and its earlier stages. */
function sizesOf({ size, sizes, stages = [] }) {
  const wide = Math.round(size * 1.5);
  const shapes = [[wide, size], [size, wide], [2 * size, 2 * size]];
  return [
    ["", `${size} × ${size}`, { size: null, until: null }],
    ...shapes.map((shape) => [shape.join("x"), shape.join(" × "), { size: shape, until: null }]),
    ...stages.slice(0, -1).map((name, i) => [name, `${sizes[i]} × ${sizes[i]} (${name})`, { size: null, until: name }]),
  ];
}

/** Builds the fields. */
export function showOptions() {
  const seeds = h("input.seeds", { type: "text", inputMode: "numeric", id: "seeds" });
  seeds.addEventListener("change", () => {
    const found = seeds.value.split(/[\s,]+/).filter(Boolean);
    const most = state.model.limits.seeds;
    const right = found.length > 0 && found.length <= most && found.every((one) => /^\d{1,15}$/.test(one));
    seeds.setAttribute("aria-invalid", String(!right));
    if (!right) return say(`expected one to ${most} whole numbers with commas between them, such as 0,1,2, found ${seeds.value}`);
    edit((board) => (board.seeds = found.map(Number)));
  });
  const fresh = button(icon("dice"), "Other seeds, as many as now", () =>
    edit((board) => (board.seeds = board.seeds.map(() => Math.floor(Math.random() * 1e6)))),
  );
  const fields = [
    number("best_of", "Best of", "Draw this many per seed and keep the one that matches best", { min: "1", step: "1" }),
    number("steps", "Steps", "Number of sampling steps: more take longer and draw finer", { min: "1", step: "1" }),
    number("guidance", "Guidance", "Weight of guidance: 1 turns it off, more follows the parts more closely", { step: "0.5" }),
  ];
  const size = h("select", { id: "size" });
  size.addEventListener("change", () => edit((board) => Object.assign(board, SIZES.get(size.value))));
  watch(({ board, model }) => {
    if (!model) return;
    if (document.activeElement !== seeds) set(seeds, "value", board.seeds.join(", "));
    if (!SIZES.size) {
      for (const [name, label, value] of sizesOf(model)) {
        SIZES.set(name, value);
        size.append(h("option", { value: name }, label));
      }
    }
    const fixed = board.task === "edit" || board.task === "outpaint"; // as large as the picture
    for (const option of size.children) option.disabled = fixed && SIZES.get(option.value).size !== null;
    set(size, "value", fixed ? (board.until ?? "") : (board.size?.join("x") ?? board.until ?? ""));
    for (const [name, input] of fields) {
      if (document.activeElement !== input) set(input, "value", board[name] === null ? "" : String(board[name]));
      input.placeholder = String(model.defaults[name] ?? 1);
      if (name === "best_of") input.max = String(model.limits.best_of);
    }
  });
  return h(
    "div.options",
    {},
    h("div.seeding", {}, field("Seeds", "One picture per seed, such as 0, 1, 2", seeds), fresh),
    field("Size", "How large to draw: the first stage alone is a quick look; other shapes may look less natural", size),
    fields.map(([, , label]) => label),
  );
}

function number(name, label, about, limits) {
  const input = h("input", { type: "number", id: name.replace("_", "-"), ...limits });
  input.addEventListener("change", () => {
    const right = input.checkValidity();
    input.setAttribute("aria-invalid", String(!right));
    if (right) edit((board) => (board[name] = input.value === "" ? null : input.valueAsNumber));
  });
  return [name, input, field(label, about, input)];
}
