// One question to two models, and their answers as they come.

import { complain, events, make, post } from "./api.js";

const form = document.getElementById("ask");
const stop = document.getElementById("stop");
const ask = form.querySelector("[type=submit]");
const difference = document.getElementById("difference");
const { prompt, new_tokens: length, mood, temperature, seed, chat } = form.elements;
const voices = [...document.querySelectorAll(".voice")].map((panel) => ({
  panel,
  model: panel.querySelector("select"),
  said: panel.querySelector(".said"),
  state: panel.querySelector(".state"),
  rate: panel.querySelector(".rate"),
  why: panel.querySelector(".why"),
}));

length.addEventListener("input", () => (length.nextElementSibling.value = length.value));
mood.addEventListener("change", () => {
  for (const label of form.querySelectorAll(".sampled")) label.hidden = mood.value !== "sampled";
});
for (const button of form.querySelectorAll("[data-prompt]")) {
  button.addEventListener("click", () => {
    prompt.value = button.dataset.prompt;
    form.requestSubmit();
  });
}
prompt.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    form.requestSubmit();
  }
});
stop.addEventListener("click", () => post("/api/say/stop"));

let turn = 0;
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const mine = ++turn;
  complain(form);
  difference.textContent = "";
  for (const voice of voices) begin(voice);
  busy(true);
  try {
    const answer = await post("/api/say", question());
    for await (const told of events(answer)) {
      if (mine !== turn) return;
      HEARD[told.what]?.(voices[told.side], told);
    }
    compare();
  } catch (error) {
    if (mine === turn) {
      complain(form, error);
      for (const voice of voices) voice.state.textContent = "";
    }
  } finally {
    if (mine === turn) busy(false);
  }
});

function question() {
  const asked = { models: voices.map((voice) => voice.model.value), prompt: prompt.value, new_tokens: Number(length.value), chat: chat.checked };
  if (mood.value === "sampled") Object.assign(asked, { seed: Number(seed.value), temperature: Number(temperature.value) });
  return asked;
}

function busy(on) {
  stop.disabled = !on;
  document.body.classList.toggle("speaking", on);
}

function begin(voice) {
  voice.text = "";
  voice.said.replaceChildren(Object.assign(document.createElement("span"), { className: "prompt", textContent: chat.checked ? "" : prompt.value }));
  voice.node = document.createTextNode("");
  voice.said.append(voice.node);
  voice.panel.classList.remove("failed");
  voice.panel.classList.add("live");
  voice.state.textContent = "waiting";
  voice.rate.textContent = "";
  voice.why.textContent = "";
}

const HEARD = {
  opening(voice) {
    voice.state.textContent = "opening the model …";
  },
  ready(voice, told) {
    const shared = told.engine === "torch" ? `, ${told.threads} thread${told.threads > 1 ? "s" : ""}` : "";
    voice.state.textContent = told.about + shared;
    voice.why.textContent = told.note ?? "";
  },
  text(voice, told) {
    voice.text += told.text;
    voice.node.data = voice.text;
    pace(voice, told);
  },
  end(voice, told) {
    voice.text += told.text;
    voice.node.data = voice.text;
    voice.panel.classList.remove("live");
    if (told.tokens) pace(voice, told);
    if (told.stopped) voice.rate.textContent += voice.rate.textContent ? ", stopped" : "stopped";
  },
  error(voice, told) {
    voice.panel.classList.remove("live");
    voice.panel.classList.add("failed");
    voice.state.textContent = told.text;
  },
};

function pace(voice, told) {
  const rate = told.seconds > 0 ? ` · ${(told.tokens / told.seconds).toFixed(told.tokens / told.seconds < 10 ? 1 : 0)} tokens/s` : "";
  voice.rate.textContent = `${told.tokens} token${told.tokens === 1 ? "" : "s"}${rate}`;
}

// The words on the right that are not in the left's answer, by the longest common run of words in order.
function compare() {
  const [left, right] = voices.map((voice) => voice.text.match(/\s*\S+/g) ?? []);
  if (!left.length || !right.length) return;
  const kept = common(left.map((word) => word.trim()), right.map((word) => word.trim()));
  const [asked] = voices[1].said.childNodes;
  voices[1].said.replaceChildren(asked, ...pieces(right, kept));
  const other = right.length - kept.size;
  difference.textContent = other ? `${other} of ${right.length} words on the right are not on the left.` : "Word for word the same.";
}

// Runs of words, those that are not kept as marks.
function pieces(words, kept) {
  const found = [];
  for (const [at, word] of words.entries()) {
    const last = found.at(-1);
    if (last && last.kept === kept.has(at)) last.text += word;
    else found.push({ kept: kept.has(at), text: word });
  }
  return found.flatMap(({ kept: same, text }) => (same ? [text] : [text.match(/^\s*/)[0], make("mark", "", text.trimStart())]));
}

function common(left, right) {
  const longest = Array.from({ length: left.length + 1 }, () => new Uint16Array(right.length + 1));
  for (let i = left.length - 1; i >= 0; i--) {
    for (let j = right.length - 1; j >= 0; j--) {
      longest[i][j] = left[i] === right[j] ? longest[i + 1][j + 1] + 1 : Math.max(longest[i + 1][j], longest[i][j + 1]);
    }
  }
  const kept = new Set();
  for (let i = 0, j = 0; i < left.length && j < right.length; ) {
    if (left[i] === right[j]) kept.add(j++) && i++;
    else if (longest[i + 1][j] >= longest[i][j + 1]) i++;
    else j++;
  }
  return kept;
}
