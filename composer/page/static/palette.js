/** A palette as swatches: colours that can be changed, and how much there is of each. */

import { button, fill, h, set } from "./dom.js";
import { icon } from "./icons.js";

const MOST = 8;

/** "#aa3311 0.6, #eeddcc 0.4" -> [{colour, share}]; null where the text says something else. */
export function coloursOf(text) {
  const found = text.split(",").map((one) => one.trim().match(/^(#[0-9a-f]{6})(?:[\s:]+(\d*\.?\d+))?$/i));
  if (!found.every(Boolean)) return null;
  return found.map(([, colour, share]) => ({ colour: colour.toLowerCase(), share: Number(share ?? 1) }));
}

const written = (colours) => colours.map(({ colour, share }) => `${colour} ${Math.round(share * 100) / 100}`).join(", ");

/**
 * An editor of a palette.
 * @param {(text: string) => void} hear is told the palette as it is written on the command line
 */
export function swatches(hear) {
  const element = h("div.swatches", { role: "group", "aria-label": "Colours" });
  let colours = [];
  const tell = () => hear(written(colours));
  const row = (i) => {
    const colour = h("input", { type: "color", title: "This colour", "aria-label": `Colour ${i + 1}` });
    colour.addEventListener("input", () => {
      colours[i].colour = colour.value;
      tell();
    });
    const told = `How much there is of colour ${i + 1}`;
    const share = h("input", { type: "range", min: "0.01", max: "1", step: "0.01", title: told, "aria-label": told });
    share.addEventListener("input", () => {
      colours[i].share = share.valueAsNumber;
      tell();
    });
    const away = button(icon("close"), `Take colour ${i + 1} away`, () => {
      colours.splice(i, 1);
      tell();
    });
    away.classList.add("quiet");
    return h("div.swatch", {}, colour, share, away);
  };
  const list = h("div");
  const add = button([icon("plus"), "Colour"], "Add a colour", () => {
    colours.push({ colour: "#888888", share: 0.2 });
    tell();
  });
  add.classList.add("small");
  fill(element, list, add);
  const show = (text) => {
    colours = coloursOf(text) ?? [];
    add.disabled = colours.length >= MOST;
    while (list.children.length > colours.length) list.lastChild.remove();
    while (list.children.length < colours.length) list.append(row(list.children.length));
    colours.forEach(({ colour, share }, i) => {
      const [swatch, slider, away] = list.children[i].children;
      set(swatch, "value", colour);
      set(slider, "value", String(share));
      away.disabled = colours.length === 1;
    });
  };
  return { element, show };
}
