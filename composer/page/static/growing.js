/** Outpainting: the border of the picture is dragged outward; the new room is hatched. */

import { clamp, h, plain, set } from "./dom.js";
import { edit, state, watch } from "./store.js";

const MOST = 2; // shares of a side
const NEAR = 14; // pixels of the screen

/** What the canvas's tools do while a picture grows. */
export function growing(view) {
  let side = null;
  const edges = () => {
    const [left, top, right, bottom] = state.board.by;
    return [-left, -top, 1 + right, 1 + bottom];
  };
  const near = ([x, y]) => {
    const [left, top, right, bottom] = edges();
    const [w, h] = view.size.map((length) => (length * view.scale) / NEAR);
    const far = [Math.abs(x - left) * w, Math.abs(y - top) * h, Math.abs(x - right) * w, Math.abs(y - bottom) * h];
    const found = far.indexOf(Math.min(...far));
    return far[found] <= 1 ? found : null;
  };
  return {
    begin(point) {
      side = near(point);
      return side !== null;
    },
    move([x, y]) {
      if (side === null) return;
      const out = [-x, -y, x - 1, y - 1][side];
      edit((now) => (now.by = now.by.map((share, i) => (i === side ? snapped(out) : share))), `by${side}`);
    },
    end() {
      side = null;
      if (view.fitted) view.fit(state.board.by);
    },
    cursor: (point) => ["ew-resize", "ns-resize", "ew-resize", "ns-resize"][near(point)] ?? "grab",
    paint: (context, scale) => paint(context, scale, view.size),
  };
}

/** The same as four numbers. */
export function growFields() {
  const fields = ["left", "top", "right", "bottom"].map((name, side) => {
    const about = `How far the picture grows at the ${name}, in shares of its own side`;
    const input = h("input", { type: "number", min: "0", max: String(MOST), step: "0.05", title: about, "aria-label": about });
    input.addEventListener("change", () => {
      if (input.checkValidity()) edit((board) => (board.by = board.by.map((share, i) => (i === side ? input.valueAsNumber : share))));
    });
    return { input, label: h("label.field", {}, h("span", {}, name), input) };
  });
  watch(({ board }) => fields.forEach(({ input }, side) => set(input, "value", plain(board.by[side]))));
  return h("span.growing", {}, fields.map(({ label }) => label));
}

const snapped = (share) => Math.round(clamp(share, 0, MOST) * 20) / 20;

function paint(context, scale, [width, height]) {
  const [left, top, right, bottom] = state.board.by;
  const outer = [-left * width, -top * height, width * (1 + left + right), height * (1 + top + bottom)];
  context.save();
  context.beginPath();
  context.rect(...outer);
  context.rect(width, 0, -width, height);
  context.clip("evenodd");
  context.fillStyle = "#ff2d7833";
  context.fillRect(...outer);
  context.restore();
  context.lineWidth = 2 / scale;
  context.strokeStyle = "#ff2d78";
  context.strokeRect(...outer);
  context.fillStyle = "#fff";
  const [x, y, w, h] = outer;
  for (const [cx, cy] of [[x, y + h / 2], [x + w / 2, y], [x + w, y + h / 2], [x + w / 2, y + h]]) {
    context.beginPath();
    context.arc(cx, cy, 6 / scale, 0, 7);
    context.fill();
    context.stroke();
  }
}
