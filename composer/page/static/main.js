/** Starts the page: asks what the model is, builds the three columns. */

import { readModel } from "./api.js";
import { showComposition, showTasks } from "./composition.js";
import { attempt, fill, h, say } from "./dom.js";
import { acceptFiles } from "./dragging.js";
import { readHistory } from "./jobs.js";
import { showKeys } from "./keys.js";
import { showPictures, takeFiles } from "./pictures.js";
import { showResult } from "./result.js";
import { recall, remember } from "./session.js";
import { changed, state } from "./store.js";

const part = (id) => document.getElementById(id);

showPictures(part("pictures"));
const stage = showComposition(part("composition"));
showResult(part("result"));
const model = h("span.model");
fill(part("header"), h("h1", {}, "Composer"), model, showTasks(), h("span.fill"), showKeys(stage));
acceptFiles(takeFiles);
await attempt(async () => {
  state.model = await readModel();
  model.textContent = state.model.name;
  model.title = `${state.model.name} draws at ${state.model.base_size} pixels, then up to ${state.model.size}`;
  changed();
  say("Ready.");
  await readHistory();
  await recall();
  remember();
});
document.body.dataset.ready = "true";
