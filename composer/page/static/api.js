/** The server's answers: see composer/page for the other side. */

const token = new URLSearchParams(location.search).get("token") ?? "";

/** An address that carries the token, for what cannot send a header: images, events, downloads. */
export function address(url, parameters = {}) {
  if (url.startsWith("data:")) return url; // it holds the image itself
  const made = new URL(url, location.origin);
  for (const [name, value] of Object.entries({ ...parameters, token })) made.searchParams.set(name, value);
  return made.pathname + made.search;
}

async function call(method, url, body = null) {
  const json = body !== null && !(body instanceof Blob);
  const headers = { "X-Token": token, ...(json && { "Content-Type": "application/json" }) };
  let answer;
  try {
    answer = await fetch(url, { method, headers, body: json ? JSON.stringify(body) : body });
  } catch {
    throw new Error("the server does not answer: is `composer page` still running?");
  }
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => ({}));
  throw new Error(told.error ?? `the server answers ${answer.status} ${answer.statusText}`);
}

const json = async (...request) => (await call(...request)).json();

export const readModel = () => json("GET", "/api/model");
export const readSamples = () => json("GET", "/api/samples");
export const readPictures = () => json("GET", "/api/pictures");
export const readJobs = () => json("GET", "/api/jobs");
export const takeSample = (name) => json("POST", `/api/samples/${encodeURIComponent(name)}`);
export const sendPicture = (file, name) => json("POST", `/api/pictures?name=${encodeURIComponent(name)}`, file);
export const sendMask = async (png) => (await json("POST", "/api/masks", png)).id;
export const readWords = (condition, text) => json("POST", "/api/words", { condition, text });
export const draw = async (board) => (await json("POST", "/api/jobs", board)).id;
export const cancel = (id) => call("DELETE", `/api/jobs/${id}`);
export const spell = (board) => json("POST", "/api/command", board);
export const readFile = async (url) => (await call("GET", url)).blob();

const ENDS = ["done", "failed", "cancelled"];

/**
 * Follows one job until it ends.
 * @param {string} id the job
 * @param {(kind: string, data: object) => void} hear is told of each event
 * @returns {() => void} stops following; the job goes on
 */
export function follow(id, hear) {
  const source = new EventSource(address(`/api/jobs/${id}/events`));
  const stop = () => source.close();
  for (const kind of ["queued", "step", "preview", "picture", ...ENDS]) {
    source.addEventListener(kind, (event) => {
      if (ENDS.includes(kind)) stop();
      hear(kind, JSON.parse(event.data));
    });
  }
  source.addEventListener("error", () => {
    if (source.readyState !== EventSource.CLOSED) return; // it connects again by itself
    hear("failed", { error: "the server no longer answers: is `composer page` still running?" });
  });
  return stop;
}
