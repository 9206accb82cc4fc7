/**
 * Regions and places: what was marked on a picture, as strokes in shares of its width and height, so that they fit any size.
 *
 * {base: a mask that the server has, or null; strokes: [{tool, erase, points, radius}]}
 */

import { address, sendMask } from "./api.js";

export const NOTHING = { base: null, strokes: [] };

/** With one more stroke. */
export function withStroke(marks, stroke) {
  return { ...(marks ?? NOTHING), strokes: [...(marks ?? NOTHING).strokes, Object.freeze(stroke)] };
}

/** A box as a stroke: [left, top, right, bottom] in shares. */
export function box([left, top, right, bottom], erase = false) {
  return { tool: "box", erase, points: [[left, top], [right, bottom]], radius: 0 };
}

/** The box, if one box is all that is marked. */
export function onlyBox(marks) {
  if (!marks || marks.base || marks.strokes.length !== 1) return null;
  const [{ tool, erase, points }] = marks.strokes;
  if (tool !== "box" || erase) return null;
  return sorted(points);
}

function sorted([[x0, y0], [x1, y1]]) {
  return [Math.min(x0, x1), Math.min(y0, y1), Math.max(x0, x1), Math.max(y0, y1)];
}

/** What the server says of a region or place, as strokes. */
export function fromServer(given) {
  if (!given) return null;
  if ("strokes" in given) return { ...given, strokes: given.strokes.map(Object.freeze) };
  return given.box ? { base: null, strokes: [Object.freeze(box(given.box))] } : { base: given.mask, strokes: [] };
}

/**
 * What the server is told: {box} or {mask}, null where nothing is marked. A mask has the picture's own size.
 * @param {object|null} marks
 * @param {number} width of the picture in pixels
 * @param {number} height of the picture in pixels
 */
export async function toServer(marks, width, height) {
  if (!marks || (!marks.base && !marks.strokes.length)) return null;
  const only = onlyBox(marks);
  if (only) return { box: only };
  if (!marks.strokes.length) return { mask: marks.base };
  return { mask: await sendMask(await png(marks, width, height)) };
}

async function png(marks, width, height) {
  const drawn = await new Layer(width, height).show(marks);
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { alpha: false });
  context.fillStyle = "#000";
  context.fillRect(0, 0, width, height);
  context.drawImage(drawn.canvas, 0, 0);
  return canvas.convertToBlob({ type: "image/png" });
}

/** Strokes drawn in white on nothing, at a picture's own size; further strokes are added without drawing all again. */
export class Layer {
  constructor(width, height) {
    this.canvas = new OffscreenCanvas(width, height);
    this.context = this.canvas.getContext("2d");
    this.shown = NOTHING;
    this.turn = Promise.resolve();
  }

  /** Shows these marks; calls wait for one another, since a mask of the server's takes time to come. */
  show(marks) {
    this.turn = this.turn.then(() => this.#show(marks ?? NOTHING));
    return this.turn;
  }

  async #show(wanted) {
    const before = this.shown;
    const grown = before.base === wanted.base && before.strokes.every((stroke, i) => stroke === wanted.strokes[i]);
    if (!grown) {
      const base = wanted.base ? await load(address(`/api/masks/${wanted.base}`)).catch(() => null) : null;
      this.context.clearRect(0, 0, this.canvas.width, this.canvas.height);
      if (base) this.#stencil(base);
    }
    for (const stroke of wanted.strokes.slice(grown ? before.strokes.length : 0)) this.stroke(stroke);
    this.shown = wanted;
    return this;
  }

  #stencil(image) {
    const { width, height } = this.canvas;
    this.context.drawImage(image, 0, 0, width, height);
    const pixels = this.context.getImageData(0, 0, width, height);
    for (let i = 0; i < pixels.data.length; i += 4) pixels.data[i + 3] = pixels.data[i]; // white is inside
    this.context.putImageData(pixels, 0, 0);
  }

  /** Draws one stroke. */
  stroke({ tool, erase, points, radius }) {
    const { width, height } = this.canvas;
    const { context } = this;
    context.globalCompositeOperation = erase ? "destination-out" : "source-over";
    context.fillStyle = context.strokeStyle = "#fff";
    if (tool === "all") {
      context.globalCompositeOperation = "xor"; // the inverse
      context.fillRect(0, 0, width, height);
    } else if (tool === "box") {
      const [left, top, right, bottom] = sorted(points);
      const [x, y] = [Math.round(left * width), Math.round(top * height)];
      context.fillRect(x, y, Math.round(right * width) - x, Math.round(bottom * height) - y);
    } else {
      context.beginPath();
      for (const [x, y] of points) context.lineTo(x * width, y * height);
      if (tool === "lasso") context.fill();
      else {
        if (points.length === 1) context.lineTo(points[0][0] * width + 0.01, points[0][1] * height);
        Object.assign(context, { lineWidth: 2 * radius * width, lineCap: "round", lineJoin: "round" });
        context.stroke();
      }
    }
  }
}

/** An image that is loaded and decoded. */
export async function load(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  return image;
}
