// What every page does with a script: times in the reader's own zone, ages that go on, and keys. Without it all pages work.
"use strict";

document.documentElement.classList.add("scripted");

const language = document.documentElement.lang;
const medium = new Intl.DateTimeFormat(language, { dateStyle: "medium", timeStyle: "medium" });
const [second, minute, hour, day] = document.body.dataset.units.split("|");
const units = [[day, 86400], [hour, 3600], [minute, 60]];

// As the server says it: whole units, of which there are at least two.
function lasting(seconds) {
  seconds = Math.max(0, Math.floor(seconds));
  const [unit, length] = units.find(([, length]) => seconds >= 2 * length) ?? [second, 1];
  return `${Math.floor(seconds / length)} ${unit}`;
}

let clockAhead = 0; // milliseconds by which this machine's clock is ahead of the server's

function showAges() {
  const now = Date.now() - clockAhead;
  for (const each of document.querySelectorAll("[data-since]")) each.textContent = lasting((now - Date.parse(each.dataset.since)) / 1000);
  for (const each of document.querySelectorAll("[data-until]")) each.textContent = lasting((Date.parse(each.dataset.until) - now) / 1000);
}

function showTimes() {
  for (const each of document.querySelectorAll("time:not([data-since], .local)")) {
    each.textContent = medium.format(new Date(each.dateTime));
    each.classList.add("local");
  }
}

document.querySelector("nav [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" }); // on a phone

showTimes();
showAges();
setInterval(showAges, 1000);

let pressed = "";
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) return;
  const links = document.querySelectorAll("nav a");
  if (event.key === "/") {
    const search = document.querySelector("[data-search]");
    event.preventDefault();
    if (search) search.select();
    else location.href = "/orders#search";
  } else if (event.key === "?") {
    document.getElementById("keys").showModal();
  } else if (event.key === "p") {
    document.querySelector("[data-live-switch]")?.click();
  } else if (pressed === "g" && links[event.key - 1]) {
    location.href = links[event.key - 1].href;
  }
  pressed = event.key;
});
document.querySelector("[data-keys]").addEventListener("click", () => document.getElementById("keys").showModal());
if (location.hash === "#search") document.querySelector("[data-search]")?.focus();
