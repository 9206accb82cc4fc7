/** Keys for everything that is done often, and the list of them. */

import { button, h } from "./dom.js";
import { start, stop } from "./jobs.js";
import { redo, undo } from "./store.js";
import { turnTo } from "./composition.js";

const KEYS = [
  ["Tab, Enter", "go through tiles, slots and fields; press one"],
  ["Ctrl+Enter", "draw"],
  ["Escape", "cancel the drawing"],
  ["Ctrl+Z, Ctrl+Shift+Z", "undo, redo"],
  ["1 2 3 4", "compose, edit, outpaint, vary"],
  ["O", "open files"],
  ["B R L E", "brush, box, lasso, eraser"],
  ["[ ]", "thinner, thicker brush"],
  ["+ - 0", "zoom in, out, show all (on the canvas)"],
  ["arrows, Enter", "move the cursor on the canvas, begin and end a stroke"],
  ["Delete", "empty a slot"],
  ["F", "give the canvas all the room"],
  ["D", "download the PNG"],
  ["?", "these keys"],
];

/** Lets keys work, and builds the button that lists them. */
export function showKeys(stage) {
  const close = button("Close", "Close this list", () => list.close());
  const rows = KEYS.map(([keys, about]) => [h("dt", {}, keys), h("dd", {}, about)]);
  const list = h("dialog", { "aria-label": "Keys" }, h("h2", {}, "Keys"), h("dl", {}, rows), close);
  document.body.append(list);
  const click = (id) => () => document.getElementById(id).click();
  const tools = Object.fromEntries(Object.entries({ b: "brush", r: "box", l: "lasso", e: "eraser" }).map(([key, tool]) => [key, () => stage.choose(tool)]));
  const tasks = Object.fromEntries(["compose", "edit", "outpaint", "vary"].map((task, i) => [String(i + 1), () => turnTo(task)]));
  const enlarge = () => document.body.classList.toggle("large");
  const acts = { ...tools, ...tasks, o: click("open"), d: click("download"), f: enlarge, "?": () => list.showModal(), "[": stage.thinner, "]": stage.thicker };
  addEventListener("keydown", (event) => {
    const command = event.ctrlKey || event.metaKey;
    const writing = event.target.matches("textarea, input:not([type=range], [type=color]), select");
    if (command && event.key === "Enter") start();
    else if (command && event.key.toLowerCase() === "z" && !writing) (event.shiftKey ? redo : undo)();
    else if (event.key === "Escape" && !list.open) stop();
    else if (!command && !event.altKey && !writing && acts[event.key.toLowerCase()]) acts[event.key.toLowerCase()]();
    else return;
    event.preventDefault();
  });
  const large = button("Large canvas", "Give the canvas all the room of the column (F)", enlarge);
  const help = button("?", "Keys for everything (?)", () => list.showModal());
  return [large, help];
}
