// Talking to the server: JSON one way, JSON or a stream of events back. What is wrong is one line of words.

export async function post(path, value) {
  const answer = await fetch(path, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(value ?? {}),
  }).catch(() => {
    throw new Error("the server does not answer; is trimtab ui still running?");
  });
  if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).error ?? `the server said ${answer.status}`);
  return answer;
}

export async function get(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).error ?? `the server said ${answer.status}`);
  return answer.json();
}

// Server-sent events of an answer to `post`, which EventSource could not ask for.
export async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let unread = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    unread += value;
    const whole = unread.split("\n\n");
    unread = whole.pop();
    for (const event of whole) if (event.startsWith("data: ")) yield JSON.parse(event.slice(6));
  }
}

export function make(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export function complain(form, error) {
  const line = form.querySelector(".error");
  line.textContent = error ? error.message : "";
  line.hidden = !error;
}

export function size(bytes) {
  if (!bytes) return "?";
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  const power = Math.min(Math.floor(Math.log10(bytes) / 3), units.length - 1);
  return `${(bytes / 1000 ** power).toPrecision(3).replace(/\.?0+$/, power ? "" : "$&")} ${units[power]}`;
}

export function span(seconds) {
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
}
