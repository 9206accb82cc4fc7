/** A field for words, in which those that the model cannot read are underlined, and the words that it knows are shown. */

import { readWords } from "./api.js";
import { fill, h, set } from "./dom.js";

const PAUSE = 250; // milliseconds without a key before the model is asked

/**
 * @param {string} about what to write
 * @param {() => {condition: string, vocabulary: string[]|null}} asked what the words are for
 * @param {(text: string, preview: string|null) => void} hear is told what is written, once the model has read it
 */
export function words(about, asked, hear) {
  const input = h("textarea", { rows: 2, title: about, "aria-label": about, placeholder: about, spellcheck: false });
  const lines = h("div.lines", { "aria-hidden": "true" });
  const problem = h("p.problem", { role: "alert" });
  const known = h("details.known", {}, h("summary", { title: "The words that the model was trained with" }, "Words it knows"));
  const list = h("div.vocabulary");
  known.append(list);
  let waiting = null;
  let turn = 0;
  const read = async () => {
    const { condition } = asked();
    const mine = ++turn;
    const text = input.value.trim();
    if (!text) return settle({ unknown: [], error: null, url: null }, "");
    const answer = await readWords(condition, text).catch((error) => ({ unknown: [], error: error.message, url: null }));
    if (mine === turn && condition === asked().condition) settle(answer, text);
  };
  const settle = ({ unknown, error, url }, text) => {
    underline(lines, input.value, unknown);
    problem.textContent = error ?? (unknown.length ? `The model cannot read: ${unknown.join(", ")}` : "");
    input.setAttribute("aria-invalid", String(Boolean(error)));
    if (!error) hear(text, url);
  };
  input.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(read, PAUSE);
    underline(lines, input.value, []);
  });
  input.addEventListener("scroll", () => (lines.scrollTop = input.scrollTop));
  const add = (word) => {
    input.value = `${input.value.trimEnd()} ${word}`.trimStart();
    input.dispatchEvent(new Event("input"));
  };
  const show = (text) => {
    const { condition, vocabulary } = asked();
    if (element.dataset.condition !== condition) {
      element.dataset.condition = condition;
      input.value = "";
      fill(list, (vocabulary ?? []).map((word) => h("button", { type: "button", title: `Add “${word}”`, on: { click: () => add(word) } }, word)));
      known.hidden = !vocabulary;
      fill(problem);
    }
    if (document.activeElement === input || input.value.trim() === text) return;
    set(input, "value", text);
    read();
  };
  const element = h("div.written", {}, h("div.over", {}, lines, input), problem, known);
  return { element, show };
}

/** The same text behind the field, with lines under the words that are not known. */
function underline(lines, text, unknown) {
  const low = new Set(unknown.map((word) => word.toLowerCase()));
  const parts = text.split(/([\s,.;:!?"()]+)/);
  fill(lines, parts.map((part) => (low.has(part.toLowerCase()) ? h("u", {}, part) : part)));
}
