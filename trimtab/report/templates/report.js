"use strict";
const root = document.documentElement;
const button = document.getElementById("theme");
const prefersDark = matchMedia("(prefers-color-scheme: dark)");

function isDark() {
  return root.dataset.theme ? root.dataset.theme === "dark" : prefersDark.matches;
}

// The button says what it would change to.
function label() {
  button.textContent = isDark() ? "Light" : "Dark";
  button.setAttribute("aria-label", `Use ${isDark() ? "light" : "dark"} colours`);
}

button.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  label();
});
prefersDark.addEventListener("change", label);
label();
button.hidden = false;

// Only what can be scrolled takes the focus.
function reach() {
  for (const box of document.querySelectorAll(".scroll")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
}
addEventListener("resize", reach);
for (const fold of document.querySelectorAll("details")) fold.addEventListener("toggle", reach);
reach();

// What is folded away on the screen belongs on paper.
let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open])")];
  for (const fold of opened) fold.open = true;
});
addEventListener("afterprint", () => {
  for (const fold of opened) fold.open = false;
});
