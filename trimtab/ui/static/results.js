// Points and rows are the same results: each lights the other up, and a point leads to its result.

import { complain, post } from "./api.js";

const rows = new Map([...document.querySelectorAll("tr[data-name]")].map((row) => [row.dataset.name, row]));

function nameOf(dot) {
  const said = dot.querySelector("title")?.textContent ?? "";
  return [...rows.keys()].filter((name) => said.startsWith(`${name}: `)).sort((a, b) => b.length - a.length)[0];
}

const dots = new Map();
for (const dot of document.querySelectorAll("svg.picture circle.dot")) {
  const name = nameOf(dot);
  if (!name) continue;
  dots.set(name, [...(dots.get(name) ?? []), dot]);
  const at = rows.get(name).dataset.at;
  dot.addEventListener("pointerenter", () => light(name, true));
  dot.addEventListener("pointerleave", () => light(name, false));
  if (at) {
    dot.classList.add("leads");
    dot.addEventListener("click", () => location.assign(`/result?at=${encodeURIComponent(at)}`));
  }
}
for (const [name, row] of rows) {
  row.addEventListener("pointerenter", () => light(name, true));
  row.addEventListener("pointerleave", () => light(name, false));
}

function light(name, on) {
  rows.get(name).classList.toggle("lit", on);
  for (const dot of dots.get(name) ?? []) dot.classList.toggle("lit", on);
}

const dialog = document.getElementById("measure");
const form = dialog?.querySelector("form");
form?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const { base, tasks, limit, speed } = form.elements;
  const asked = { folder: document.body.dataset.folder, base: base.value, tasks: tasks.value, limit: Number(limit.value), speed: speed.checked };
  try {
    await post("/api/measure", asked);
    complain(form);
    dialog.close();
  } catch (error) {
    complain(form, error);
  }
});

// What was measured while this page was open is shown at once.
let busy = false;
document.addEventListener("job", ({ detail }) => {
  const here = detail && detail.kind !== "plan" && detail.facts.folder === document.body.dataset.folder;
  if (busy && here && detail.state === "done") location.reload();
  busy = Boolean(here && detail.state === "running");
});

// What is under the pointer in a map of layers is said above it, at once and in full.
for (const map of document.querySelectorAll("svg.drawing.inset")) {
  const figure = map.closest("figure");
  const caption = figure?.querySelector("figcaption");
  if (!caption) continue;
  const said = document.createElement("span");
  said.className = "reading";
  caption.append(said);
  map.addEventListener("pointerover", (event) => {
    said.textContent = event.target.closest("rect")?.querySelector("title")?.textContent ?? "";
  });
  map.addEventListener("pointerleave", () => (said.textContent = ""));
}
