/** Drag and drop: files from outside, and tiles by pointer, so that fingers and pens drag as mice do. */

import { address } from "./api.js";
import { h } from "./dom.js";
import { place } from "./store.js";

const FAR = 6; // pixels before a press becomes a drag

/**
 * Lets an element be dragged into a slot.
 * @param {HTMLElement} element the tile
 * @param {() => {picture: string, condition: string|null, url: string}} what is dragged; without a condition, any slot fits
 */
export function draggable(element, what) {
  element.addEventListener("pointerdown", (down) => {
    if (down.button !== 0) return;
    let ghost = null;
    const move = (event) => {
      if (!ghost && Math.hypot(event.clientX - down.clientX, event.clientY - down.clientY) > FAR) ghost = lift(what());
      if (!ghost) return;
      ghost.style.translate = `${event.clientX - 28}px ${event.clientY - 28}px`;
      mark(slotAt(event, what()));
    };
    const end = (event) => {
      for (const [kind, listen] of Object.entries(listeners)) removeEventListener(kind, listen);
      if (!ghost) return;
      ghost.remove();
      mark(null);
      document.body.classList.remove("dragging");
      const slot = event.type === "pointerup" ? slotAt(event, what()) : null;
      if (slot) place({ condition: slot.dataset.slot, picture: what().picture }, slot.dataset.side);
      addEventListener("click", (click) => click.stopPropagation(), { capture: true, once: true });
      setTimeout(() => dispatchEvent(new Event("click")), 0); // the listener above goes, if no click came
    };
    const listeners = { pointermove: move, pointerup: end, pointercancel: end };
    for (const [kind, listen] of Object.entries(listeners)) addEventListener(kind, listen);
  });
}

function lift({ url, condition }) {
  document.body.classList.add("dragging");
  const face = url ? h("img", { src: address(url), alt: "" }) : h("span", {}, condition);
  const ghost = h("div.ghost", {}, face);
  document.body.append(ghost);
  return ghost;
}

function slotAt(event, { condition }) {
  const under = document.elementFromPoint(event.clientX, event.clientY);
  const slot = under?.closest("[data-slot]");
  if (slot && (condition === null || slot.dataset.slot === condition)) return slot;
  if (condition === null) return null;
  const area = under?.closest("[data-side-area], #composition"); // anywhere there: it can only mean its own slot
  const side = area?.dataset.sideArea ?? "parts";
  return area && document.querySelector(`[data-slot="${CSS.escape(condition)}"][data-side="${side}"]`);
}

function mark(slot) {
  for (const other of document.querySelectorAll("[data-slot].target")) other.classList.remove("target");
  slot?.classList.add("target");
}

/**
 * Takes files that are dropped anywhere, or pasted.
 * @param {(files: File[]) => void} take
 */
export function acceptFiles(take) {
  const over = (on) => document.body.classList.toggle("files-over", on);
  addEventListener("dragover", (event) => {
    event.preventDefault();
    over(true);
  });
  addEventListener("dragleave", (event) => event.relatedTarget ?? over(false));
  addEventListener("drop", (event) => {
    event.preventDefault();
    over(false);
    if (event.dataTransfer.files.length) take([...event.dataTransfer.files]);
  });
  addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files].filter((file) => file.type.startsWith("image/"));
    if (files.length) take(files);
  });
}
