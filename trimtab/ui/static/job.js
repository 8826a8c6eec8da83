// The one piece of work: drawn from what the server says, again whenever it says something new.

import { make, post, size, span } from "./api.js";

const KINDS = { plan: "Planning", compress: "Compressing", measure: "Measuring" };
const PHASES = {
  load: "opening the model",
  observe: "watching what goes through",
  fold: "folding what belongs together",
  sweep: "going through the blocks",
  save: "writing the result",
  look: "looking at the models",
  text: "reading the text",
  compare: "comparing",
  speed: "taking the time",
};
const MOST_CELLS = 160;

export function watch(place) {
  if (!place) return;
  let told = null;
  let heard = 0;
  const source = new EventSource("/api/job/events");
  source.addEventListener("message", (event) => {
    told = JSON.parse(event.data);
    heard = performance.now();
    draw(place, told);
    document.dispatchEvent(new CustomEvent("job", { detail: told }));
  });
  setInterval(() => {
    if (told?.state === "running") clock(place, told, told.seconds + (performance.now() - heard) / 1000);
  }, 500);
}

function draw(place, job) {
  const floating = place.classList.contains("floating");
  const hidden = dismissed(job);
  place.hidden = floating && (!job || hidden || job.kind === "plan");
  if (!job || hidden) {
    place.replaceChildren(...(floating ? [] : [idle()]));
    return;
  }
  place.dataset.state = job.state;
  const drawn = { running, done, failed, cancelled }[job.state](job);
  place.replaceChildren(head(job), ...drawn.filter(Boolean));
  if (job.state === "running") clock(place, job, job.seconds);
}

// What has ended is shown once more after a reload, not for ever.
function dismissed(job) {
  return job && job.state !== "running" && sessionStorage.getItem("trimtab-seen") === identity(job);
}

// Numbers begin anew with the server.
function identity(job) {
  return `${job.number} ${job.begun}`;
}

function idle() {
  return make("p", "hint", "Nothing is running. The plan says what would be done and how large the result would be; it changes nothing.");
}

function head(job) {
  const words = { running: KINDS[job.kind], done: job.kind === "plan" ? "Plan" : "Done", failed: "That did not work", cancelled: "Cancelled" };
  const line = make("header", "", make("h2", "", job.stopping && job.state === "running" ? "Stopping" : words[job.state]));
  if (job.kind !== "plan") line.append(make("span", "subject", job.title));
  if (job.state !== "running") {
    const close = make("button", "link close", "Close");
    close.type = "button";
    close.addEventListener("click", () => {
      sessionStorage.setItem("trimtab-seen", identity(job));
      draw(document.getElementById("job"), job);
    });
    line.append(close);
  }
  return line;
}

function running(job) {
  const now = job.progress;
  const cancel = make("button", "quiet", job.stopping ? "Stopping …" : "Cancel");
  cancel.type = "button";
  cancel.disabled = job.stopping;
  cancel.addEventListener("click", () => post("/api/job/cancel"));
  return [
    make("p", "phase", now ? `${PHASES[now.phase] ?? now.phase}${now.total > 1 ? `, ${now.done} of ${now.total}` : ""}` : "starting"),
    bar(now),
    make("p", "detail", now?.detail || "\u00a0"),
    make("p", "clock"),
    make("div", "actions", cancel),
  ];
}

// One cell for each block, so that one sees the work go through the model.
function bar(now) {
  const counted = now && now.total > 1;
  const strip = make("div", "strip");
  strip.setAttribute("role", "progressbar");
  if (!counted) {
    strip.append(make("i", "waiting"));
    return strip;
  }
  strip.setAttribute("aria-valuemax", now.total);
  strip.setAttribute("aria-valuenow", now.done);
  const cells = Math.min(now.total, MOST_CELLS);
  const reached = (now.done / now.total) * cells;
  for (let cell = 0; cell < cells; cell++) {
    strip.append(make("i", cell < Math.floor(reached) ? "full" : cell === Math.floor(reached) ? "at" : ""));
  }
  return strip;
}

function clock(place, job, seconds) {
  const line = place.querySelector(".clock");
  if (!line) return;
  const now = job.progress;
  const spent = now ? now.seconds + seconds - job.seconds : 0;
  const left = now && now.done > 0 && now.done < now.total ? `, about ${span((now.seconds / now.done) * (now.total - now.done) - spent + now.seconds)} left` : "";
  line.textContent = `${span(seconds)}${left}${now ? ` · ${size(now.memory)} of memory` : ""}`;
}

function done(job) {
  if (job.kind === "plan") return plan(job);
  if (job.kind === "measure") {
    return [make("p", "", `Every result has its numbers (${span(job.seconds)}).`), links([["See what each size buys", results(job)]])];
  }
  const { bytes_before: before, bytes_after: after } = job.result;
  const at = encodeURIComponent(job.facts.folder ? `${job.facts.folder}/${job.facts.name}` : job.facts.name);
  return [
    shrunk(before, after),
    make("p", "hint", `in ${span(job.seconds)}`),
    links([["Side by side with its base", `/talk?at=${at}`], ["Look at it", `/result?at=${at}`], ["All results", results(job)]]),
  ];
}

function results(job) {
  return `/?folder=${encodeURIComponent(job.facts.folder)}`;
}

function links(pairs) {
  const line = make("div", "actions");
  for (const [words, address] of pairs) {
    const link = make("a", line.children.length ? "quiet button" : "button", words);
    link.href = address;
    line.append(link);
  }
  return line;
}

function shrunk(before, after) {
  const times = before && after ? before / after : 0;
  const line = make("div", "shrunk");
  line.append(make("p", "big", `${size(before)} → ${after ? size(after) : "the data decide"}`));
  if (times) {
    const whole = make("div", "whole", make("i"));
    whole.firstChild.style.width = `${Math.min(100 / times, 100)}%`;
    line.append(whole, make("p", "hint", times >= 1 ? `${times.toPrecision(3)} times smaller` : "not smaller"));
  }
  return line;
}

function plan(job) {
  const found = job.result;
  const rows = found.steps.map((step) =>
    make("tr", "", make("th", "", step.method), make("td", "number", String(step.sites)), make("td", "number", step.bits === null ? "the data decide" : step.bits.toPrecision(4))),
  );
  const names = make("tr", "", make("th", "", "step"), make("th", "number", "matrices"), make("th", "number", "bits after"));
  const start = make("button", "button", "Start");
  start.type = "button";
  start.addEventListener("click", async () => {
    start.disabled = true;
    await post("/api/compress", { number: job.number }).catch((error) => {
      start.after(make("p", "error", error.message));
    });
  });
  return [
    shrunk(found.bytes_before, found.bytes_after),
    make("div", "scroll", make("table", "", make("thead", "", names), make("tbody", "", ...rows))),
    make("p", "hint", `${found.parameters.toLocaleString("en").replaceAll(",", "\u202f")} parameters; sizes are those in memory`),
    typed(job),
    make("div", "actions", start),
  ];
}

// The page does nothing that could not be typed.
function typed(job) {
  const words = make("code", "", job.command.replace(/^trimtab plan/, "trimtab compress").replace(/ --json --progress=json/, ` -o ${job.facts.name}`));
  return make("details", "typed", make("summary", "", "The same, typed"), make("pre", "", words));
}

function failed(job) {
  const more = job.said.length > 1 ? make("details", "", make("summary", "", "What it said"), make("pre", "", job.said.join("\n"))) : null;
  return [make("p", "error", job.error), more];
}

function cancelled() {
  return [make("p", "", "Nothing was left half-written.")];
}
