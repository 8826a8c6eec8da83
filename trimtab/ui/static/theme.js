"use strict";
// Before anything is drawn: the colours that were chosen last.
const chosen = localStorage.getItem("trimtab-theme");
if (chosen) document.documentElement.dataset.theme = chosen;
