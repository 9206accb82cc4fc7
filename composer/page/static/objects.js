/** Objects: boxes with phrases, for models that read them. */

import { button, h, set } from "./dom.js";
import { icon } from "./icons.js";
import { edit, state, watch } from "./store.js";

/** Adds an object where a box was drawn. */
export function withObject({ points: [[x0, y0], [x1, y1]] }) {
  const box = [Math.min(x0, x1), Math.min(y0, y1), Math.max(x0, x1), Math.max(y0, y1)];
  edit((board) => board.objects.push({ phrase: "", box }));
  queueMicrotask(() => [...document.querySelectorAll(".objects input.phrase")].at(-1)?.focus());
}

/** The boxes on the canvas. */
export function objectsOnCanvas(context, scale, [width, height]) {
  context.font = `${12 / scale}px sans-serif`;
  for (const { phrase, box: [left, top, right, bottom] } of state.board.objects) {
    context.lineWidth = 2 / scale;
    context.strokeStyle = context.fillStyle = "#ff2d78";
    context.strokeRect(left * width, top * height, (right - left) * width, (bottom - top) * height);
    context.fillText(phrase, left * width + 3 / scale, top * height + 13 / scale);
  }
}

/** The list of objects beside the canvas. */
export function showObjects() {
  const list = h("div.objects");
  const add = button([icon("plus"), "Add"], "Add an object in the middle; its numbers say where", () =>
    edit((board) => board.objects.push({ phrase: "", box: [0.25, 0.25, 0.75, 0.75] })),
  );
  watch(() => {
    const { objects } = state.board;
    while (list.children.length > objects.length) list.lastChild.remove();
    while (list.children.length < objects.length) list.append(row(list.children.length));
    objects.forEach((object, i) => {
      const [phrase, where] = list.children[i].querySelectorAll("input");
      set(phrase, "value", object.phrase);
      if (document.activeElement !== where) set(where, "value", object.box.map((share) => share.toFixed(2)).join(", "));
    });
  });
  return h("div", {}, h("p.note", {}, "Draw a box, then say in words what is in it."), list, add);
}

function row(i) {
  const about = "What is in this box, such as a red cube";
  const phrase = h("input.phrase", { type: "text", title: about, "aria-label": about, placeholder: "a red cube" });
  phrase.addEventListener("input", () => edit((board) => (board.objects[i].phrase = phrase.value), `phrase${i}`));
  const told = "Where it is: left, top, right, bottom, each from 0 to 1";
  const where = h("input", { type: "text", title: told, "aria-label": told });
  where.addEventListener("change", () => {
    const box = where.value.split(",").map(Number);
    const right = box.length === 4 && box.every((share) => share >= 0 && share <= 1) && box[0] < box[2] && box[1] < box[3];
    if (right) edit((board) => (board.objects[i].box = box));
    where.setAttribute("aria-invalid", String(!right));
  });
  const away = button(icon("close"), "Remove this object", () => edit((board) => board.objects.splice(i, 1)));
  away.classList.add("quiet");
  return h("div.object", {}, phrase, away, where);
}
