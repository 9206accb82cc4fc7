/** The signs on buttons: lines in a square of 16. */

const PATHS = {
  brush: "M13.5 2.5 7 9M7 9c-2-.6-3.6.6-3.8 2.3-.1 1-.7 1.7-1.7 2.2 2.6.8 5.6.2 6-2.3.2-1-.1-1.7-.5-2.2Z",
  box: "M2.5 4h11v8h-11Z",
  lasso: "M8 2.5c3.3 0 5.5 1.7 5.5 3.9S11.3 10.3 8 10.3 2.5 8.6 2.5 6.4 4.7 2.5 8 2.5ZM5 9.8c-1.2.7-1.3 2.3.2 2.6M5.2 12.4c1.4.2 1.5 1.2.6 2",
  eraser: "m6 13-3.5-3.5 6.5-6.5 4.5 4.5L8 13ZM6 13h7.5M5.5 6.5l4.5 4.5",
  undo: "M5.5 3 2.5 6l3 3M2.5 6h7a4 4 0 0 1 0 8H6",
  redo: "m10.5 3 3 3-3 3M13.5 6h-7a4 4 0 0 0 0 8H10",
  fit: "M2.5 6V2.5H6M10 2.5h3.5V6M13.5 10v3.5H10M6 13.5H2.5V10",
  plus: "M8 3v10M3 8h10",
  minus: "M3 8h10",
  close: "m4 4 8 8M12 4l-8 8",
  open: "M8 11V3M5 6l3-3 3 3M2.5 10v3.5h11V10",
  download: "M8 3v8M5 8l3 3 3-3M2.5 10v3.5h11V10",
  dice: "M3 3h10v10H3ZM6 6h.01M10 10h.01M10 6h.01M6 10h.01",
  pen: "m3 13 .6-3L11 2.6 13.4 5 6 12.4Z",
  invert: "M8 2.5a5.5 5.5 0 1 0 0 11ZM8 2.5a5.5 5.5 0 0 1 0 11",
  place: "M8 14s4.5-4.3 4.5-7.5a4.5 4.5 0 0 0-9 0C3.5 9.7 8 14 8 14ZM8 6.5h.01",
  grow: "M5.5 5.5h5v5h-5ZM8 3.5v-2M8 14.5v-2M3.5 8h-2M14.5 8h-2",
  help: "M6 6a2 2 0 1 1 3 1.7c-.7.4-1 .8-1 1.6M8 12h.01",
};

/** One of the signs above. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("aria-hidden", "true");
  svg.classList.add("icon");
  const path = document.createElementNS(svg.namespaceURI, "path");
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  return svg;
}
