/** Elements, built without markup: every text goes in as text, so that names and captions of strangers run nothing. */

/**
 * An element.
 * @param {string} tag its name, such as "button" or "div.card" (with a class)
 * @param {object} properties properties; `on` holds listeners, `data` the data attributes, `aria-*` and others attributes
 * @param {...(Node|string|null)} children what is inside; strings become text
 */
export function h(tag, properties = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const element = document.createElement(name);
  element.classList.add(...classes);
  for (const [key, value] of Object.entries(properties)) {
    if (value === null || value === undefined) continue;
    if (key === "on") for (const [event, listen] of Object.entries(value)) element.addEventListener(event, listen);
    else if (key === "data") Object.assign(element.dataset, value);
    else if (key in element && !key.startsWith("aria")) element[key] = value;
    else element.setAttribute(key, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** A button whose one-line explanation is seen on hover and read aloud. */
export function button(label, about, press, properties = {}) {
  return h("button", { type: "button", title: about, "aria-label": about, on: { click: press }, ...properties }, label);
}

/** A number's field with its name before it. */
export function field(label, about, input) {
  input.title = about;
  input.setAttribute("aria-label", about);
  return h("label.field", { title: about }, h("span", {}, label), input);
}

/** Puts new children in place of the old ones. */
export function fill(element, ...children) {
  element.replaceChildren(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** Sets a property only where it differs, so that a field in use keeps its cursor. */
export function set(element, property, value) {
  if (element[property] !== value) element[property] = value;
}

export const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

/** A number with at most two digits after the point, as people write it. */
export const plain = (value) => String(Math.round(value * 100) / 100);

const status = () => document.getElementById("status");

/** Says something in the line at the bottom, which is read aloud, too. */
export function say(text) {
  status().classList.remove("error");
  status().textContent = text;
}

/** Says what went wrong, in the words of the model's side. */
export function sayError(error) {
  status().classList.add("error");
  status().textContent = error.message ?? String(error);
}

/** Lets a task's error come up in the line at the bottom. */
export async function attempt(task) {
  try {
    return await task();
  } catch (error) {
    sayError(error);
    return null;
  }
}
