/** What a finger, pen, mouse or key does on the canvas: brush, box, lasso, eraser; pan and zoom. */

import { clamp } from "./dom.js";

const FEWEST = 3; // corners of a lasso

/**
 * Connects a canvas with its tools.
 * @param {View} view what is shown
 * @param {{tool: string, radius: number, by: object|null, finish: (stroke: object) => void, grow: object|null}} pen
 *   the tool in hand, its radius in shares of the width, and what to do with a finished stroke
 */
export function handle(view, pen) {
  const { canvas } = view;
  const pointers = new Map();
  let stroke = null;
  let pinch = null;
  let panning = false;
  let space = false;
  pen.at = [0.5, 0.5]; // where the keys draw
  pen.stroke = () => stroke;

  const begin = (point) => {
    const erase = pen.tool === "eraser";
    stroke = { tool: erase ? "brush" : pen.tool, erase, points: [point], radius: pen.radius };
  };
  const extend = (point) => {
    if (stroke.tool === "box") stroke.points[1] = point;
    else stroke.points.push(point);
    view.draw();
  };
  const finish = () => {
    const done = stroke;
    stroke = null;
    view.draw();
    if (!done) return;
    const inside = ([x, y]) => [clamp(x, 0, 1), clamp(y, 0, 1)];
    if (done.tool === "box") {
      done.points = done.points.map(inside);
      const [[x0, y0], [x1, y1] = [x0, y0]] = done.points;
      if (Math.abs(x1 - x0) < 1e-3 || Math.abs(y1 - y0) < 1e-3) return;
    }
    if (done.tool === "lasso" && done.points.length < FEWEST) return;
    pen.finish(done);
  };

  canvas.addEventListener("pointerdown", (event) => {
    canvas.focus({ preventScroll: true });
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, [event.clientX, event.clientY]);
    const point = view.toShares(event.clientX, event.clientY);
    if (pointers.size === 2) {
      stroke = null;
      pinch = spread(pointers);
    } else if (event.button === 1 || space || event.button === 2) panning = true;
    else if (pen.grow) panning = !pen.grow.begin(point);
    else begin(point);
    view.draw();
  });
  canvas.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    const point = view.toShares(event.clientX, event.clientY);
    pen.at = point;
    if (!before) {
      canvas.style.cursor = pen.grow?.cursor(point) ?? "";
      return view.draw();
    }
    pointers.set(event.pointerId, [event.clientX, event.clientY]);
    if (pointers.size === 2) {
      const now = spread(pointers);
      const at = canvas.getBoundingClientRect();
      view.pan(now.x - pinch.x, now.y - pinch.y);
      view.zoom(now.distance / pinch.distance, now.x - at.left, now.y - at.top);
      pinch = now;
    } else if (panning) view.pan(event.clientX - before[0], event.clientY - before[1]);
    else if (pen.grow) pen.grow.move(point);
    else if (stroke) for (const part of event.getCoalescedEvents?.() ?? [event]) extend(view.toShares(part.clientX, part.clientY));
  });
  const up = (event) => {
    pointers.delete(event.pointerId);
    panning = false;
    if (event.type === "pointercancel") stroke = null;
    if (pen.grow) pen.grow.end();
    else finish();
  };
  canvas.addEventListener("pointerup", up);
  canvas.addEventListener("pointercancel", up);
  canvas.addEventListener("pointerleave", () => {
    pen.at = null;
    view.draw();
  });
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      const at = canvas.getBoundingClientRect();
      if (event.shiftKey) view.pan(-event.deltaY, 0);
      else view.zoom(Math.exp(-event.deltaY / 300), event.clientX - at.left, event.clientY - at.top);
    },
    { passive: false },
  );

  const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey) return;
    const arrow = arrows[event.key];
    const far = event.shiftKey ? 0.1 : 0.02;
    pen.at ??= [0.5, 0.5];
    if (arrow && event.altKey) view.pan(-40 * arrow[0], -40 * arrow[1]);
    else if (arrow) {
      pen.at = pen.at.map((share, i) => clamp(share + far * arrow[i], 0, 1));
      if (stroke) extend([...pen.at]);
    } else if (event.key === "Enter") {
      if (stroke) finish();
      else if (!pen.grow) begin([...pen.at]);
    } else if (event.key === "Escape" && stroke) stroke = null;
    else if (event.key === " ") space = true;
    else if (event.key === "+" || event.key === "=") view.zoom(1.25);
    else if (event.key === "-") view.zoom(0.8);
    else if (event.key === "0") view.fit(view.room?.());
    else return;
    event.preventDefault();
    event.stopPropagation();
    view.draw();
  });
  canvas.addEventListener("keyup", (event) => {
    if (event.key === " ") space = false;
  });
  canvas.addEventListener("blur", () => (space = false));
}

function spread(pointers) {
  const [[x0, y0], [x1, y1]] = pointers.values();
  return { x: (x0 + x1) / 2, y: (y0 + y1) / 2, distance: Math.hypot(x1 - x0, y1 - y0) || 1 };
}
