/** The canvas of the middle column: the region of an edit, the place of a part, the border of a canvas that grows, objects. */

import { address } from "./api.js";
import { button, fill, h } from "./dom.js";
import { growFields, growing } from "./growing.js";
import { icon } from "./icons.js";
import { withStroke } from "./marks.js";
import { objectsOnCanvas, withObject } from "./objects.js";
import { pixelsOf } from "./pictures.js";
import { edit, editPart, partOf, pictureOf, previewOf, redo, state, undo, watch } from "./store.js";
import { handle } from "./tools.js";
import { View } from "./view.js";

const TOOLS = {
  brush: "Brush: paint what belongs to it (B)",
  box: "Box: drag a rectangle (R)",
  lasso: "Lasso: draw around it (L)",
  eraser: "Eraser: rub out (E)",
};

/** What the canvas shows now, and what is marked there. */
export function target() {
  const { board, model } = state;
  if (!model) return null;
  const picture = pictureOf(board.picture);
  const square = { width: model.size, height: model.size };
  const last = state.jobs.find((job) => job.id === state.current)?.pictures[state.shown]?.url ?? null;
  if (state.stage === "objects") return { kind: "objects", title: "Objects", url: last, ...square, marks: null };
  const part = state.stage === "place" || board.task === "compose" ? partOf(state.selected) : null;
  if (part) {
    const keep = (marks) => editPart(part.condition, { place: marks });
    return { kind: "place", title: `Place of ${part.condition}`, url: previewOf(part) ?? last, ...square, marks: part.place, keep };
  }
  if (board.task === "compose" || !picture) return null;
  const shown = { title: picture.name, url: picture.url, width: picture.width, height: picture.height };
  if (board.task === "outpaint") return { kind: "grow", ...shown, marks: null };
  return { kind: "region", ...shown, marks: board.region, keep: (marks) => edit((now) => (now.region = marks)) };
}

/** Builds the canvas with its tools. */
export function showStage() {
  const canvas = h("canvas", { tabIndex: 0, id: "canvas", role: "application" });
  const about = "Arrows move the cursor, Enter begins and ends a stroke, + - 0 zoom, Alt with arrows pans";
  Object.assign(canvas, { title: `${about}; wheel or pinch zooms, space with the mouse pans` });
  const view = new View(canvas);
  const pen = { tool: "brush", radius: 0.04, grow: null };
  view.room = () => (target()?.kind === "grow" ? state.board.by : undefined);
  pen.finish = (stroke) => {
    const now = target();
    if (now?.kind === "objects") withObject(stroke);
    else if (now?.keep) now.keep(withStroke(now.marks, stroke));
  };
  handle(view, pen);
  const grow = growing(view);

  const tools = Object.entries(TOOLS).map(([name, about]) => {
    const made = button(icon(name), about, () => choose(name), { data: { tool: name } });
    return made;
  });
  const choose = (name) => {
    pen.tool = name;
    for (const tool of tools) tool.setAttribute("aria-pressed", String(tool.dataset.tool === name));
    view.draw();
  };
  const size = slider("Size", "Width of the brush, as a share of the picture's ([ and ])", 0.005, 0.25, 0.005, (value) => {
    pen.radius = value / 2;
    view.draw();
  });
  size.input.value = "0.08";
  const feather = slider("Feather", "How far inward the change fades in, as a share of the picture; its pixels stand beside it", 0, 0.1, 0.001, (share) =>
    edit((board) => (board.soften = pixelsOf(share, pictureOf(board.picture))), "soften"),
  );
  const sides = growFields();
  const clear = () => target()?.keep?.(null);
  const invert = () => target()?.keep?.(withStroke(target().marks, { tool: "all", erase: false, points: [], radius: 0 }));
  const bar = h(
    "div.bar.tools",
    { role: "toolbar", "aria-label": "Tools of the canvas" },
    h("span.group", {}, tools),
    size.label,
    feather.label,
    sides,
    h("span.group", {}, button(icon("invert"), "Swap inside and outside", invert), button(icon("close"), "Clear all marks", clear)),
    h("span.group", {}, button(icon("undo"), "Undo (Ctrl+Z)", undo), button(icon("redo"), "Redo (Ctrl+Shift+Z)", redo)),
    h("span.group", {}, button(icon("minus"), "Zoom out (-)", () => view.zoom(0.8)), button(icon("fit"), "Show all of it (0)", () => view.fit(view.room?.())), button(icon("plus"), "Zoom in (+)", () => view.zoom(1.25))),
  );
  const title = h("div.caption", {});
  const none = h("p.none", {}, "The tile of the open slot comes up here: paint on it where in the picture it counts. Turn to Edit to repaint a region of a picture.");
  const stage = h("div.stage", {}, canvas, title, none);

  view.extra = (context, scale) => {
    const now = target();
    if (now?.kind === "objects") objectsOnCanvas(context, scale, view.size);
    if (now?.kind === "grow") pen.grow?.paint(context, scale);
    paintPen(context, scale, view, pen, now);
  };
  watch(() => {
    const now = target();
    bar.classList.toggle("off", !now);
    stage.classList.toggle("off", !now);
    bar.dataset.kind = now?.kind ?? "";
    if (!now) return;
    pen.grow = now.kind === "grow" ? grow : null;
    if (now.kind === "objects") choose("box");
    canvas.setAttribute("aria-label", `${now.title}. ${about}`);
    fill(title, `${now.title} · ${now.width} × ${now.height}`);
    if (document.activeElement !== feather.input) feather.input.valueAsNumber = (state.board.soften ?? 2) / Math.min(now.width, now.height);
    feather.output.textContent = `${state.board.soften ?? 2} px`;
    view.show(now.url && address(now.url), now.width, now.height);
    view.mark(now.marks, now.kind === "region" ? (state.board.soften ?? 2) : 0);
  });
  choose("brush");
  const step = (by) => {
    size.input.valueAsNumber += by;
    size.input.dispatchEvent(new Event("input"));
  };
  return { bar, stage, choose, thinner: () => step(-0.01), thicker: () => step(0.01) };
}

function slider(name, about, min, max, step, hear) {
  const input = h("input", { type: "range", min: String(min), max: String(max), step: String(step), title: about, "aria-label": about });
  const output = h("output", {});
  input.addEventListener("input", () => hear(input.valueAsNumber));
  return { input, output, label: h("label.field", { title: about }, h("span", {}, name), input, output) };
}

/** The stroke that is being drawn, and the tip of the brush. */
function paintPen(context, scale, view, pen, now) {
  const [width, height] = view.size;
  const stroke = pen.stroke();
  context.lineWidth = 1.5 / scale;
  context.strokeStyle = context.fillStyle = "#ff2d78";
  if (stroke) {
    const points = stroke.points.map(([x, y]) => [x * width, y * height]);
    context.save();
    context.beginPath();
    if (stroke.tool === "box") context.rect(...points[0], ...(points[1] ?? points[0]).map((at, i) => at - points[0][i]));
    else for (const point of points) context.lineTo(...point);
    if (stroke.tool === "brush") {
      Object.assign(context, { globalAlpha: 0.5, lineCap: "round", lineJoin: "round", lineWidth: 2 * stroke.radius * width });
      if (stroke.erase) context.strokeStyle = "#fff";
      if (points.length === 1) context.lineTo(points[0][0] + 0.01, points[0][1]);
    }
    context.stroke();
    context.restore();
  }
  if (!pen.at || !now?.keep) return;
  const [x, y] = [pen.at[0] * width, pen.at[1] * height];
  context.beginPath();
  if (pen.tool === "brush" || pen.tool === "eraser") context.arc(x, y, pen.radius * width, 0, 7);
  else for (const [dx, dy] of [[9, 0], [0, 9]]) {
    context.moveTo(x - dx / scale, y - dy / scale);
    context.lineTo(x + dx / scale, y + dy / scale);
  }
  context.strokeStyle = "#000";
  context.stroke();
  context.setLineDash([3 / scale, 3 / scale]);
  context.strokeStyle = "#fff";
  context.stroke();
  context.setLineDash([]);
}
