/** A picture in its natural pixels on a canvas that pans and zooms, and what is marked on it. */

import { clamp } from "./dom.js";
import { Layer, load } from "./marks.js";

const LARGEST = 40; // screen pixels per pixel of the picture
const TINT = "#ff2d78";

export class View {
  /** @param {HTMLCanvasElement} canvas what to draw on; its size follows its place on the page */
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.size = [0, 0]; // of the picture
    this.image = null;
    this.layer = null;
    this.fitted = true; // until someone zooms
    this.extra = () => {}; // draws on top, in pixels of the picture
    this.soften = 0;
    new ResizeObserver(() => this.#resize()).observe(canvas);
  }

  /** Shows another picture, or a blank ground of this size where the address is null. */
  async show(url, width, height) {
    const key = `${url} ${width} ${height}`;
    if (key === this.key) return;
    this.key = key;
    this.size = [width, height];
    this.layer = new Layer(width, height);
    this.image = null;
    this.fit();
    const image = url ? await load(url).catch(() => null) : null;
    if (this.key === key) this.image = image;
    this.draw();
  }

  async mark(marks, soften = 0) {
    this.soften = soften;
    await this.layer?.show(marks);
    this.draw();
  }

  /** Shows the whole picture, and `room` around it in shares of its sides. */
  fit(room = [0, 0, 0, 0]) {
    const [width, height] = this.size;
    const { clientWidth, clientHeight } = this.canvas;
    const [left, top, right, bottom] = room;
    const whole = [width * (1 + left + right), height * (1 + top + bottom)];
    this.scale = Math.min((clientWidth - 24) / whole[0], (clientHeight - 24) / whole[1]) || 1;
    this.x = (clientWidth - this.scale * whole[0]) / 2 + this.scale * left * width;
    this.y = (clientHeight - this.scale * whole[1]) / 2 + this.scale * top * height;
    this.fitted = true;
    this.draw();
  }

  /** Zooms by a factor; the point under (x, y), in CSS pixels of the canvas, stays where it is. */
  zoom(factor, x = this.canvas.clientWidth / 2, y = this.canvas.clientHeight / 2) {
    const least = Math.min(24 / Math.max(...this.size), LARGEST);
    const scale = clamp(this.scale * factor, least, LARGEST);
    this.x = x - ((x - this.x) * scale) / this.scale;
    this.y = y - ((y - this.y) * scale) / this.scale;
    this.scale = scale;
    this.fitted = false;
    this.draw();
  }

  pan(dx, dy) {
    this.x += dx;
    this.y += dy;
    this.fitted = false;
    this.draw();
  }

  /** A point of the page -> shares of the picture's width and height. */
  toShares(clientX, clientY) {
    const at = this.canvas.getBoundingClientRect();
    const [width, height] = this.size;
    return [(clientX - at.left - this.x) / this.scale / width, (clientY - at.top - this.y) / this.scale / height];
  }

  #resize() {
    const ratio = devicePixelRatio || 1;
    this.canvas.width = Math.round(this.canvas.clientWidth * ratio);
    this.canvas.height = Math.round(this.canvas.clientHeight * ratio);
    if (this.fitted) this.fit(this.room?.());
    else this.draw();
  }

  /** Draws everything anew with the next frame. */
  draw() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = null;
      this.#paint();
    });
  }

  #paint() {
    const { context, canvas, scale } = this;
    const ratio = devicePixelRatio || 1;
    const [width, height] = this.size;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (!width) return;
    context.setTransform(ratio * scale, 0, 0, ratio * scale, ratio * this.x, ratio * this.y);
    context.imageSmoothingEnabled = scale < 2;
    context.imageSmoothingQuality = "high";
    if (this.image) context.drawImage(this.image, 0, 0, width, height);
    else {
      context.fillStyle = "#8884";
      context.fillRect(0, 0, width, height);
    }
    if (this.layer) this.#paintMarks();
    this.extra(context, scale);
  }

  /** The marks in colour; where they fade in, the colour does. */
  #paintMarks() {
    const { canvas, context } = this;
    const film = new OffscreenCanvas(canvas.width || 1, canvas.height || 1);
    const over = film.getContext("2d");
    over.setTransform(context.getTransform());
    over.imageSmoothingEnabled = this.scale < 2;
    over.drawImage(this.layer.canvas, 0, 0);
    over.setTransform(1, 0, 0, 1, 0, 0);
    const fade = this.soften * this.scale * (devicePixelRatio || 1);
    if (fade > 1) {
      const sharp = film.transferToImageBitmap();
      over.drawImage(sharp, 0, 0);
      over.globalCompositeOperation = "destination-in"; // inward only: what is outside stays outside
      over.filter = `blur(${fade / 2}px)`;
      over.drawImage(sharp, 0, 0);
      over.filter = "none";
      sharp.close();
    }
    over.globalCompositeOperation = "source-in";
    over.fillStyle = TINT;
    over.fillRect(0, 0, film.width, film.height);
    context.save();
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.globalAlpha = 0.5;
    context.drawImage(film, 0, 0);
    context.restore();
  }
}
