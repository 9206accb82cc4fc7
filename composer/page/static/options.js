/** How to draw: seeds, best-of, steps, guidance, how far and how large. */

import { button, field, h, say, set } from "./dom.js";
import { icon } from "./icons.js";
import { edit, state, watch } from "./store.js";

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
  const until = h("select", { id: "until" });
  until.addEventListener("change", () => edit((board) => (board.until = until.value || null)));
  watch(({ board, model }) => {
    if (!model) return;
    if (document.activeElement !== seeds) set(seeds, "value", board.seeds.join(", "));
    if (!until.children.length) {
      const stages = model.stages ?? [];
      until.append(h("option", { value: "" }, `${model.size} px`));
      stages.slice(0, -1).forEach((name, i) => until.append(h("option", { value: name }, `${model.sizes[i]} px (${name})`)));
    }
    set(until, "value", board.until ?? "");
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
    field("Size", "How large to draw: the first stage alone is a quick look", until),
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
