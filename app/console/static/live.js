// Keeps [data-live-from] current by short polls, which are mostly answered 304; each answer tells when to ask again. A
// part marked data-holds stays as it is while somebody points at it, has something selected in it, or is in it by the
// keyboard.
"use strict";

const region = document.querySelector("[data-live-from]");
const control = document.querySelector("[data-live-switch]");
const SLOW = 1200, LONGEST_PAUSE = 10000, MOST_MOVING = 8; // of pauses: milliseconds
let tag = null, isPaused = false, pause = 800, timer = 0;
const KEPT = "passed", KEPT_FOR = 5000;
// By pipe, the highest number that has passed; kept for the page that follows when a form is sent.
const kept = JSON.parse(sessionStorage.getItem(KEPT) ?? "null");
const seen = new Map(kept && Date.now() - kept.at < KEPT_FOR ? kept.seen : []);

function say(state, mark) {
  control.textContent = "";
  const shape = document.createElement("span");
  shape.ariaHidden = "true";
  shape.textContent = mark;
  control.append(shape, ` ${control.dataset[state].replace("{}", Math.round(pause / 1000))}`);
  control.classList.toggle("bad", state === "lost" || state === "ended");
}

async function poll() {
  clearTimeout(timer);
  if (isPaused || document.hidden) return;
  try {
    const headers = { "X-Live": "1", ...(tag && { "If-None-Match": tag }) };
    const answer = await fetch(region.dataset.liveFrom, { headers, cache: "no-store", signal: AbortSignal.timeout(8000) });
    if (answer.status === 401) return say("ended", "✕");
    if (answer.status !== 304 && !answer.ok) throw new Error(answer.statusText);
    clockAhead = Date.now() - Date.parse(answer.headers.get("Date")) - 500;
    if (Math.abs(clockAhead) < 2000) clockAhead = 0;
    const html = answer.status === 200 ? await answer.text() : "";
    if (isPaused) return;
    if (html) show(html);
    tag = answer.headers.get("ETag");
    pause = 1000 * (answer.headers.get("Next-Poll-Seconds") ?? 0.8); // none of an older version
    say(pause < SLOW ? "live" : "slower", "●");
  } catch {
    if (isPaused) return;
    pause = Math.min(LONGEST_PAUSE, 2 * pause);
    tag = null;
    say("lost", "✕");
  }
  clearTimeout(timer); // another poll may have begun meanwhile
  timer = setTimeout(poll, pause);
}

function show(html) {
  const fresh = new DOMParser().parseFromString(html, "text/html");
  for (const part of fresh.querySelectorAll("[data-part]")) {
    const shown = region.querySelector(`[data-part="${part.dataset.part}"]`);
    if ("holds" in shown.dataset && isBeingRead(shown)) continue;
    if (part.dataset.part === "verdict" && part.textContent === shown.textContent) continue; // else it is read out again
    const focused = shown.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    const known = new Set([...shown.querySelectorAll("[data-order]")].map((row) => row.dataset.order));
    const height = shown.dataset.part === "picture" ? shown.getBoundingClientRect().height : 0;
    const moving = [...shown.querySelectorAll(".mover")];
    shown.replaceWith(part);
    if (height) part.style.minHeight = `${height}px`; // what is beneath stays where it is
    if (focused) [...part.querySelectorAll("a")].find((a) => a.getAttribute("href") === focused && a.getClientRects().length)?.focus();
    for (const row of part.querySelectorAll("[data-order]")) {
      if (known.size && !known.has(row.dataset.order)) {
        row.classList.add("new");
        setTimeout(() => row.classList.remove("new"), 600);
      }
    }
    for (const each of moving) part.querySelector(`svg.${each.dataset.in}`)?.append(each);
  }
  showAges();
  showTimes();
  move();
}

function isBeingRead(part) {
  const selection = getSelection();
  const isSelected = !selection.isCollapsed && part.contains(selection.anchorNode);
  return part.matches(":hover") || part.matches(":focus-within") || isSelected;
}

// What passed a pipe since the last look goes along it, in the order in which it did.
function move() {
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const isFirst = seen.size === 0;
  for (const pipe of region.querySelectorAll("path[data-pipe]")) {
    if (!pipe.getClientRects().length) continue; // of the other layout
    const passed = pipe.dataset.passed ? pipe.dataset.passed.split(" ").map(Number) : [];
    const key = pipe.dataset.pipe;
    const before = seen.get(key) ?? (isFirst ? Infinity : 0);
    const fresh = passed.filter((number) => number > before);
    seen.set(key, Math.max(seen.get(key) ?? 0, ...passed));
    if (still) continue;
    fresh.slice(-MOST_MOVING).forEach((_, number, all) => setTimeout(() => travel(pipe), (number * pause) / all.length));
  }
}

function travel(pipe) {
  const svg = region.querySelector(`svg.${pipe.ownerSVGElement.classList[1]}`) ?? pipe.ownerSVGElement;
  const dot = document.createElementNS("http://www.w3.org/2000/svg", "circle");
  dot.setAttribute("r", "5");
  dot.setAttribute("class", "mover");
  dot.dataset.in = svg.classList[1];
  svg.append(dot);
  const length = pipe.getTotalLength(), began = performance.now(), lasts = 500 + 2 * length;
  requestAnimationFrame(function step(now) {
    const part = Math.min(1, Math.max(0, (now - began) / lasts));
    const at = pipe.getPointAtLength(part * length);
    dot.setAttribute("cx", at.x);
    dot.setAttribute("cy", at.y);
    if (part < 1) requestAnimationFrame(step);
    else dot.remove();
  });
}

control.addEventListener("click", () => {
  isPaused = !isPaused;
  control.setAttribute("aria-pressed", String(!isPaused));
  if (isPaused) say("paused", "‖");
  else poll();
});
document.addEventListener("visibilitychange", poll);
addEventListener("pagehide", () => sessionStorage.setItem(KEPT, JSON.stringify({ at: Date.now(), seen: [...seen] })));
move();
poll();
