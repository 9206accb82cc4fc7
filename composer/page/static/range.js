/** A range with two ends, of two sliders on top of one another: both work with keys. */

import { h, set } from "./dom.js";

/**
 * @param {string} about what it is for
 * @param {(ends: [number, number]) => void} hear is told of both ends
 */
export function range(about, hear) {
  const end = (name) => h("input", { type: "range", min: "0", max: "1", step: "0.05", title: `${about} (${name})`, "aria-label": `${about}: ${name}` });
  const [low, high] = [end("from"), end("to")];
  const track = h("i.track");
  const element = h("div.range", { title: about }, track, low, high);
  const ends = () => [low.valueAsNumber, high.valueAsNumber];
  const paint = () => {
    track.style.setProperty("--low", `${100 * ends()[0]}%`);
    track.style.setProperty("--high", `${100 * ends()[1]}%`);
  };
  low.addEventListener("input", () => {
    if (low.valueAsNumber > high.valueAsNumber - 0.05) low.valueAsNumber = high.valueAsNumber - 0.05;
    paint();
    hear(ends());
  });
  high.addEventListener("input", () => {
    if (high.valueAsNumber < low.valueAsNumber + 0.05) high.valueAsNumber = low.valueAsNumber + 0.05;
    paint();
    hear(ends());
  });
  const show = ([from, to]) => {
    set(low, "value", String(from));
    set(high, "value", String(to));
    paint();
  };
  return { element, show };
}
