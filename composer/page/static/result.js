/** The right column: the picture, its seeds, and how well each condition was obeyed. */

import { address, readFile } from "./api.js";
import { attempt, button, fill, h } from "./dom.js";
import { showHistory } from "./history.js";
import { icon } from "./icons.js";
import { isOpen, start, stop, copyAs } from "./jobs.js";
import { showOptions } from "./options.js";
import { editPicture, takeResult } from "./pictures.js";
import { changed, jobOf, pictureOf, state, watch } from "./store.js";

/** Builds the column. */
export function showResult(column) {
  const draw = button("Draw", "Draw what is on the board (Ctrl+Enter)", start, { id: "draw" });
  draw.classList.add("primary");
  const cancel = button("Cancel", "Stop the drawing within one step (Escape)", stop, { id: "cancel" });
  const copies = [
    button("Copy as command", "Copy the command line that draws this board", () => copyAs("command"), { id: "copy-command" }),
    button("Copy as Python", "Copy the Python that draws this board", () => copyAs("python"), { id: "copy-python" }),
  ];
  for (const copy of copies) copy.classList.add("small");
  const bar = h("progress", { max: 1, value: 0, "aria-label": "Progress" });
  const doing = h("span.note.doing");
  const picture = showPicture();
  const strip = h("div.strip", { role: "group", "aria-label": "One picture per seed" });
  const adherence = showBars(picture);
  fill(
    column,
    h("div.bar", {}, draw, cancel, h("span.fill"), copies),
    showOptions(),
    h("div.progress", {}, bar, doing),
    h("div.shown", {}, h("div", {}, picture.element, strip), adherence.element),
    showHistory(),
  );
  watch(() => {
    const job = jobOf(state.current);
    const open = isOpen(job) || state.jobs.some(isOpen);
    cancel.disabled = !open;
    const { stage = "", done = 0, total = 1 } = job?.progress ?? {};
    bar.value = job?.state === "done" ? 1 : done / total;
    bar.classList.toggle("idle", !isOpen(job));
    doing.textContent = !job ? "" : job.progress ? `${stage} ${done}/${total}` : job.state === "queued" ? `waits, ${job.position ?? 0} before it` : job.state;
    picture.show(job);
    adherence.show(job?.pictures[state.shown] ?? null);
    showStrip(strip, job);
  });
}

function showPicture() {
  const image = h("img.main", { alt: "", draggable: false });
  const over = h("img.over", { alt: "", draggable: false });
  const fitted = h("div.fitted", {}, image, over);
  const hint = h("p.none", {}, "Click tiles, or write words, then draw.");
  const pair = h("div.pair", { hidden: true });
  const download = h("a.button", { title: "Download the PNG with its recipe; drop it here again to get the board back (D)", id: "download", "aria-label": "Download the PNG" }, icon("download"));
  const use = button([icon("plus"), "Use"], "Take this picture apart, as one to compose from", () => take());
  const change = button([icon("pen"), "Edit"], "Edit a region of this picture", () => take(true));
  const take = async (edited = false) => {
    const shown = jobOf(state.current)?.pictures[state.shown];
    if (!shown) return;
    const taken = await attempt(async () => takeResult(await readFile(shown.url), shown.file));
    if (taken && edited) editPicture(taken.id);
  };
  const acts = h("div.acts", {}, download, use, change);
  const element = h("figure.picture", {}, hint, fitted, pair, acts);
  const show = (job) => {
    const shown = job?.pictures[state.shown];
    const preview = shown ? null : (job?.previews[state.shown] ?? null);
    const within = preview && job.box ? canvasOf(job.board) : null;
    const url = shown?.url ?? (within ? within.url : preview);
    hint.hidden = url !== null;
    fitted.hidden = url === null;
    over.hidden = !within;
    if (url) swap(image, url);
    if (within) swap(over, preview);
    fit(fitted, image, within);
    if (within) put(over, job.box);
    image.alt = shown ? `seed ${shown.seed}` : "preview";
    fitted.classList.toggle("preview", preview !== null);
    acts.hidden = !shown;
    if (shown) Object.assign(download, { href: address(shown.url, { download: 1 }), download: shown.file });
  };
  return { element, show, pair };
}

/** The picture that an edit changes, and where it lies on the canvas, in shares: [left, top, right, bottom]. */
function canvasOf(board) {
  const picture = pictureOf(board.picture);
  if (!picture) return null;
  const [left, top, right, bottom] = board.task === "outpaint" ? board.by : [0, 0, 0, 0];
  const [across, down] = [1 + left + right, 1 + top + bottom];
  const box = [left / across, top / down, (1 + left) / across, (1 + top) / down];
  return { url: picture.url, box, aspect: (picture.width * across) / (picture.height * down) };
}

function put(image, [left, top, right, bottom]) {
  Object.assign(image.style, { left: `${100 * left}%`, top: `${100 * top}%` });
  Object.assign(image.style, { width: `${100 * (right - left)}%`, height: `${100 * (bottom - top)}%` });
}

/** Gives the frame the shape of the canvas while a part of it is drawn; a whole picture fills the square. */
function fit(frame, image, within) {
  const aspect = within?.aspect ?? 1;
  Object.assign(frame.style, { width: `${100 * Math.min(1, aspect)}%`, height: `${100 * Math.min(1, 1 / aspect)}%` });
  put(image, within?.box ?? [0, 0, 1, 1]);
}

/** Changes an image once the next one is there: nothing flickers. */
function swap(image, url) {
  if (image.dataset.url === url) return;
  image.dataset.url = url;
  const next = new Image();
  next.src = address(url);
  const put = () => image.dataset.url === url && (image.src = next.src);
  next.decode().then(put, put);
}

function showStrip(strip, job) {
  const count = job ? Math.max(job.board.seeds?.length ?? 1, job.pictures.length) : 0;
  const key = job?.id ?? "";
  if (strip.dataset.job !== key || strip.children.length !== count) {
    strip.dataset.job = key;
    fill(strip, Array.from({ length: count }, (_, i) => thumb(i)));
  }
  [...strip.children].forEach((one, i) => {
    const url = job.pictures[i]?.url ?? job.previews[i] ?? null;
    const image = one.firstChild;
    image.hidden = url === null;
    if (url) swap(image, url);
    one.setAttribute("aria-pressed", String(i === state.shown));
    one.setAttribute("aria-label", `Show seed ${job.pictures[i]?.seed ?? job.board.seeds[i]}`);
    one.lastChild.textContent = job.pictures[i]?.seed ?? job.board.seeds[i];
  });
}

function thumb(i) {
  const made = h("button.seed", { type: "button", title: "Show this seed's picture" }, h("img", { alt: "", draggable: false }), h("span"));
  made.addEventListener("click", () => {
    state.shown = i;
    changed();
  });
  return made;
}

/** Bars of adherence; hover or focus shows what was asked against what came. */
function showBars(picture) {
  const list = h("div.bars");
  const element = h("div.adherence", {}, h("h3", { title: "How well the picture does what was asked: 1 is a perfect match, 0 is no better than chance" }, "Adherence"), list);
  let now = null;
  const compare = (name) => {
    fill(picture.pair, name ? [side(now.asked?.[name], `asked: ${name}`), side(now.got?.[name], "got")] : []);
    picture.pair.hidden = !name;
  };
  const show = (shown) => {
    if (shown === now) return;
    now = shown;
    compare(null);
    const rows = Object.entries(shown?.closed ?? {}).map(([name, closed]) => {
      const share = Math.max(0, Math.min(1, closed));
      const level = h("i");
      level.style.setProperty("--share", String(share));
      const about = `${name} matches to ${closed.toFixed(2)}: hover or focus to see what was asked and what came`;
      const row = h("button.measure", { type: "button", title: about, "aria-label": about }, h("span", {}, name), level, h("b", {}, closed.toFixed(2)));
      for (const kind of ["pointerenter", "focus"]) row.addEventListener(kind, () => compare(name));
      for (const kind of ["pointerleave", "blur"]) row.addEventListener(kind, () => compare(null));
      return row;
    });
    fill(list, rows.length ? rows : h("p.note", {}, shown ? "Nothing was asked that can be measured." : ""));
  };
  return { element, show };
}

const side = (url, label) => h("figure", {}, url ? h("img", { src: address(url), alt: "" }) : h("p.none", {}, "no preview"), h("figcaption", {}, label));
