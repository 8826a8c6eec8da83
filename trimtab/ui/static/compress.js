// The form: one way at a time, knobs as the methods declare them, a name that says what it will be.

import { complain, get, make, post } from "./api.js";

const form = document.getElementById("wish");
const fields = form.elements;
const knobs = document.getElementById("knobs");
const taken = new Set(JSON.parse(form.dataset.taken));
let methods = new Map();
let named = false;

const way = () => form.querySelector("[name=way]:checked").value;

function turn() {
  for (const part of form.querySelectorAll(".way")) part.hidden = part.dataset.way !== way();
  if (way() === "method" && !methods.size) read();
  name();
}

async function read() {
  try {
    methods = new Map((await get("/api/methods")).map((method) => [method.id, method]));
  } catch (error) {
    complain(form, error);
    return;
  }
  const rooms = Map.groupBy([...methods.values()], (method) => method.room);
  fields.method.replaceChildren(
    ...[...rooms].map(([room, found]) => {
      const group = Object.assign(document.createElement("optgroup"), { label: room });
      group.append(...found.map((method) => new Option(`${method.id}: ${method.title.split(":")[0]}`, method.id)));
      return group;
    }),
  );
  fields.method.value = methods.has("gptq") ? "gptq" : fields.method.options[0].value;
  choose();
}

function choose() {
  const method = methods.get(fields.method.value);
  if (!method) return;
  const held = method.claims.filter((claim) => claim.status === "holds").length;
  const claims = method.claims.length ? `; ${held} of ${method.claims.length} claims hold here` : "";
  document.getElementById("paper").textContent = `${method.title} (${method.paper}, ${method.fidelity}${claims})`;
  knobs.replaceChildren(...method.knobs.map(knob));
  name();
}

function knob(declared) {
  const entry = field(declared);
  entry.dataset.knob = declared.name;
  entry.dataset.type = declared.type;
  entry.addEventListener("input", name);
  const words = make("span", "", declared.name.replaceAll("_", " "));
  const label = declared.type === "bool" ? make("label", "check", entry, words) : make("label", "", words, entry);
  label.append(make("small", "", declared.help));
  return label;
}

function field({ type, options, default: standard, low, high }) {
  if (options.length) {
    const select = make("select", "", ...options.map((option) => new Option(option, option)));
    select.value = standard;
    return Object.assign(select, { standard: String(standard) });
  }
  const input = document.createElement("input");
  input.type = type === "bool" ? "checkbox" : type === "str" ? "text" : "number";
  if (type === "bool") input.checked = standard;
  else if (standard !== null) input.placeholder = standard;
  if (low !== null) input.min = low;
  if (high !== null) input.max = high;
  if (type === "float") input.step = "any";
  return Object.assign(input, { standard: type === "bool" ? standard : "" });
}

// Only what was changed is said.
function changed() {
  const said = {};
  for (const entry of knobs.querySelectorAll("[data-knob]")) {
    const value = entry.type === "checkbox" ? entry.checked : entry.value;
    if (value === entry.standard || value === "") continue;
    said[entry.dataset.knob] = entry.type === "number" ? Number(value) : value;
  }
  return said;
}

function name() {
  if (named) return;
  const model = fields.model.value.split("/").pop().replace(/^asset:/, "") || "model";
  const bits = changed().bits;
  const what = {
    bits: () => `${fields.bits.value}bit`,
    size: () => fields.size.value.replace("%", "pc"),
    speedup: () => `${fields.speedup.value}-as-fast`,
    fit: () => `in-${fields.fit.value}`,
    "max-ppl-increase": () => `loss-${fields["max-ppl-increase"].value.replace("%", "pc")}`,
    method: () => `${fields.method.value || "method"}${bits ? `-${bits}bit` : ""}`,
    do: () => (fields.do.value.match(/[a-z_0-9]+(?=\(|\s*->|\s*$)/g) ?? ["steps"]).join("-"),
    recipe: () => (fields.recipe?.value ?? "recipe").split("/").pop().replace(/\.ya?ml$/, ""),
  }[way()]();
  const whole = `${model}-${what}`.replace(/[^\w.+=-]+/g, "-").slice(0, 80);
  let number = 1;
  while (taken.has(number > 1 ? `${whole}-${number}` : whole)) number++;
  fields.name.value = number > 1 ? `${whole}-${number}` : whole;
}

function asked() {
  const value = fields[way()]?.value ?? "";
  const words = { folder: document.body.dataset.folder, model: fields.model.value.trim(), name: fields.name.value.trim(), way: way(), value };
  const more = { text: fields.text.value.trim(), dtype: fields.dtype.value, packed: fields.packed.checked, knobs: way() === "method" ? changed() : {} };
  for (const number of ["tokens", "length", "seed"]) if (fields[number].value !== "") more[number] = Number(fields[number].value);
  for (const list of ["only", "skip"]) more[list] = fields[list].value.split(/[\s,]+/).filter(Boolean);
  return { ...words, ...more };
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    await post("/api/plan", asked());
    complain(form);
    document.getElementById("job").scrollIntoView({ block: "nearest", behavior: "smooth" });
  } catch (error) {
    complain(form, error);
  }
});
for (const radio of fields.way) radio.addEventListener("change", turn);
for (const part of ["model", "size", "speedup", "fit", "max-ppl-increase", "do", "recipe"]) fields[part]?.addEventListener("input", name);
fields.bits.addEventListener("input", () => {
  fields.bits.nextElementSibling.value = fields.bits.value;
  name();
});
fields.method.addEventListener("change", choose);
fields.name.addEventListener("input", () => (named = fields.name.value !== ""));
document.addEventListener("job", ({ detail }) => {
  if (detail?.kind === "compress" && detail.state === "done") taken.add(detail.facts.name);
  if (detail?.state !== "running") name();
});
turn();
