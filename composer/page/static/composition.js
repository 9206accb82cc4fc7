/** The middle column: what to draw, of which parts. */

import { button, fill, h } from "./dom.js";
import { showInspector } from "./inspector.js";
import { showSlots } from "./slots.js";
import { showStage } from "./stage.js";
import { showSteer } from "./steer.js";
import { editPicture } from "./pictures.js";
import { edit, pictureOf, state, watch } from "./store.js";

const TASKS = {
  compose: "Draw a new picture from the parts below",
  edit: "Repaint a region of a picture; all pixels outside stay as they are",
  outpaint: "Continue a picture beyond its border; all of its pixels stay",
  vary: "Draw variations of a picture: what is kept stays, the rest is new",
};

/** The choice of the task. */
export function showTasks() {
  const tabs = Object.entries(TASKS).map(([name, about]) =>
    button(name[0].toUpperCase() + name.slice(1), about, () => turnTo(name), { data: { task: name } }),
  );
  watch(({ board, model }) => {
    for (const tab of tabs) {
      tab.setAttribute("aria-pressed", String(tab.dataset.task === board.task));
      tab.hidden = Boolean(model?.tasks) && !model.tasks.includes(tab.dataset.task);
    }
  });
  return h("div.tabs", { role: "group", "aria-label": "Task" }, tabs);
}

/** Turns to another task; one that needs a picture takes the first one. */
export function turnTo(task) {
  const picture = pictureOf(state.board.picture) ?? state.pictures[0];
  if (task !== "compose" && picture) return editPicture(picture.id, task);
  state.stage = "region";
  edit((board) => (board.task = task));
}

/** Builds the column. */
export function showComposition(column) {
  const stage = showStage();
  const slots = showSlots();
  const away = h("div.away-row", {}, h("span.note", { title: "Two-sided guidance leads from these to the parts above" }, "Lead away from"), showSlots("away"));
  const head = h("div.bar.task", {}, h("h2", {}, "Composition"), keeping());
  fill(column, head, slots, away, showSteer(), stage.bar, h("div.work", {}, stage.stage, showInspector()));
  watch(({ model }) => (away.hidden = !model?.away));
  return stage;
}

/** What stays of the picture that is changed. */
function keeping() {
  const about = h("span.note");
  const chips = h("div.chips", { role: "group", "aria-label": "Conditions of the picture that stay" });
  watch(({ board, model }) => {
    const picture = pictureOf(board.picture);
    chips.hidden = board.task === "compose" || !picture;
    about.textContent = picture || board.task === "compose" ? (chips.hidden ? TASKS[board.task] : "Keep of it:") : "Add a picture first: drop, paste or open one";
    if (chips.hidden || !model) return;
    const names = model.conditions.filter((condition) => condition.from_picture).map(({ name }) => name);
    if (chips.children.length !== names.length) fill(chips, names.map(chip));
    for (const one of chips.children) one.setAttribute("aria-pressed", String(board.keep.includes(one.dataset.name)));
  });
  return [about, chips];
}

function chip(name) {
  const made = button(name, `Keep the ${name} of the picture where it is redrawn`, () =>
    edit((board) => (board.keep = board.keep.includes(name) ? board.keep.filter((other) => other !== name) : [...board.keep, name])),
  );
  made.dataset.name = name;
  return made;
}
