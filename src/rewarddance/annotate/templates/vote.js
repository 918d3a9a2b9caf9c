"use strict";
// The page of votes. Texts go in as text, never as markup; the server says which pairs there are, left and right.

const byId = (id) => document.getElementById(id);
const criteria = JSON.parse(document.body.dataset.criteria);
const KEYS = { ArrowLeft: "left", ArrowRight: "right", ArrowDown: "tie", 1: "left", 2: "tie", 3: "right", b: "bad", s: "skip" };
const WORDS = { left: "Left", right: "Right", tie: "Equally good", bad: "Both bad", skip: "Skipped" };
const kept = new Map(); // media that were fetched ahead, by address
let asks = [], last = null, current = null, criterion = null, since = 0, busy = false, waiting = 0, view = { scale: 1, x: 0, y: 0 };

async function send(path, content) {
  for (let again = 0; ; again++) {
    try {
      const reply = await fetch(path, {
        method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(content), credentials: "same-origin",
      });
      const answer = await reply.json();
      if (reply.ok) { byId("error").textContent = ""; return answer; }
      if (reply.status < 500) return answer;
    } catch (error) { /* the server is away; the same answer counts once, however often it is sent */ }
    byId("error").textContent = "The server does not answer; your last answer is sent again until it does.";
    await new Promise((wait) => setTimeout(wait, Math.min(500 * 2 ** again, 8000)));
  }
}

function element(medium, label) {
  const made = document.createElement(medium.video ? "video" : "img");
  if (medium.video) {
    Object.assign(made, { muted: true, loop: true, autoplay: true, playsInline: true });
    made.setAttribute("aria-label", label);
  } else {
    made.alt = label;
    made.draggable = false;
  }
  made.src = medium.src;
  return made;
}

function preload() {
  const wanted = new Set(asks.flatMap((ask) => [ask.left, ask.right, ask.image].filter(Boolean).map((medium) => medium.src)));
  for (const src of kept.keys()) if (!wanted.has(src)) kept.delete(src);
  for (const ask of asks) {
    for (const medium of [ask.left, ask.right, ask.image]) {
      if (medium && !kept.has(medium.src)) {
        const ahead = medium.video ? document.createElement("video") : new Image();
        if (medium.video) ahead.preload = "auto";
        ahead.src = medium.src;
        kept.set(medium.src, ahead);
      }
    }
  }
}

function place(where, medium, label) {
  const made = element(medium, label);
  const box = byId(where).querySelector(".media");
  box.replaceChildren(made);
  if (!medium.video) {
    const size = () => box.classList.toggle("small", made.naturalWidth > 0 && made.naturalWidth < 200);
    if (made.complete) size(); else made.addEventListener("load", size);
  }
  made.addEventListener("error", () => { byId("error").textContent = "A picture cannot be loaded. Skip this pair, or reload."; });
  return made;
}

function show() {
  const ask = asks[0];
  const done = !ask;
  for (const id of ["pair", "criterion"]) byId(id).hidden = done;
  document.querySelectorAll("[data-answer], .zoom button").forEach((button) => { button.disabled = done; });
  clearTimeout(waiting);
  if (done) {
    byId("source").hidden = true;
    byId("prompt").textContent = "There is nothing left to vote on. Thank you.";
    if (current) byId("prompt").focus();
    current = null;
    waiting = setTimeout(() => busy || refresh(), 20000); // a pair that somebody else left may come back
    return;
  }
  criterion = criteria.find((one) => !ask.answered.includes(one.path)) || criteria[0];
  byId("criterion").hidden = criterion.path === "";
  byId("criterion").querySelector("b").textContent = `${criterion.name}:`;
  byId("criterion").querySelector("span").textContent = criterion.meaning;
  if (!current || current.id !== ask.id) {
    byId("prompt").textContent = ask.prompt;
    byId("source").hidden = !ask.image;
    if (ask.image) place("source", ask.image, "What both were made from");
    const shown = [place("left", ask.left, "Left candidate"), place("right", ask.right, "Right candidate")];
    const videos = shown.filter((made) => made.tagName === "VIDEO");
    byId("pause").hidden = videos.length === 0;
    if (videos.length === 2) videos[0].addEventListener("seeked", () => { videos[1].currentTime = videos[0].currentTime; });
    move({ scale: 1, x: 0, y: 0 });
    since = performance.now();
    if (current) byId("prompt").focus({ preventScroll: true });
  }
  current = ask;
}

function take(state) {
  if (state.error) {
    byId("error").textContent = `${state.error.message} ${state.error.remedy}`;
    return false;
  }
  ({ asks, last } = state);
  const { yours, cast, wanted, minutes } = state.progress;
  byId("progress").max = Math.max(wanted, 1);
  byId("progress").value = Math.min(cast, wanted);
  byId("yours").textContent = `${yours} ${yours === 1 ? "pair" : "pairs"} by you`;
  byId("all").textContent = `${cast} of ${wanted} votes by all`;
  byId("left-time").textContent = minutes === null ? "" : `about ${minutes < 1 ? "a minute" : `${Math.round(minutes)} minutes`} left`;
  byId("undo").disabled = false;
  preload();
  show();
  return true;
}

async function refresh() { take(await send("/ask", {})); }

async function answer(word) {
  if (busy || !current) return;
  busy = true;
  const button = document.querySelector(`[data-answer="${word}"]`);
  button.classList.add("chosen");
  const state = await send("/vote", {
    id: current.id, answer: word, criterion: criterion.path, seconds: (performance.now() - since) / 1000,
  });
  button.classList.remove("chosen");
  since = performance.now();
  if (take(state)) byId("told").textContent = `${WORDS[word]}, saved.`;
  else if (state.error.lost) {
    await refresh();
    byId("told").textContent = `${state.error.message} ${state.error.remedy}`;
  }
  busy = false;
}

async function undo() {
  if (busy) return;
  busy = true;
  const had = last; // it comes twice where a reply was lost, and takes back one answer
  const state = await send("/undo", { last });
  if (take(state)) {
    const since = last !== null && had !== null && last > had;
    byId("told").textContent = had === null ? "There is nothing to take back."
      : since ? "You have answered in another window since. Once more takes that back." : "Your last answer is taken back.";
  }
  busy = false;
}

// -- zoom, of both together ----------------------------------------------------------------------------------------

function move(to) {
  view = to;
  if (view.scale <= 1) view = { scale: 1, x: 0, y: 0 };
  document.querySelectorAll(".frame > *").forEach((made) => {
    made.style.transform = `translate(${100 * view.x}%, ${100 * view.y}%) scale(${view.scale})`;
  });
}

function zoom(factor, at = { x: 0.5, y: 0.5 }) {
  const scale = Math.min(Math.max(view.scale * factor, 1), 16);
  const ratio = scale / view.scale;
  move({ scale, x: at.x - (at.x - view.x) * ratio, y: at.y - (at.y - view.y) * ratio });
}

document.querySelectorAll(".frame").forEach((frame) => {
  const at = (event) => {
    const box = frame.getBoundingClientRect();
    return { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height };
  };
  const fingers = new Map();
  frame.addEventListener("wheel", (event) => { event.preventDefault(); zoom(event.deltaY < 0 ? 1.25 : 0.8, at(event)); }, { passive: false });
  frame.addEventListener("dblclick", (event) => (view.scale > 1 ? move({ scale: 1, x: 0, y: 0 }) : zoom(3, at(event))));
  frame.addEventListener("pointerdown", (event) => { fingers.set(event.pointerId, at(event)); frame.setPointerCapture(event.pointerId); });
  frame.addEventListener("pointermove", (event) => {
    if (!fingers.has(event.pointerId)) return;
    const before = fingers.get(event.pointerId), now = at(event);
    if (fingers.size === 1 && view.scale > 1) {
      move({ scale: view.scale, x: view.x + now.x - before.x, y: view.y + now.y - before.y });
    } else if (fingers.size === 2) {
      const [other] = [...fingers].filter(([id]) => id !== event.pointerId).map(([, point]) => point);
      const length = (point) => Math.max(Math.hypot(point.x - other.x, point.y - other.y), 0.01);
      zoom(length(now) / length(before), other);
    }
    fingers.set(event.pointerId, now);
  });
  for (const end of ["pointerup", "pointercancel"]) frame.addEventListener(end, (event) => fingers.delete(event.pointerId));
});

function pause() {
  const videos = [...document.querySelectorAll(".frame video")];
  const playing = videos.some((video) => !video.paused);
  videos.forEach((video) => (playing ? video.pause() : video.play()));
}

// -- keys and buttons ----------------------------------------------------------------------------------------------

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const act = {
    u: undo, Backspace: undo, "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), 0: () => move({ scale: 1, x: 0, y: 0 }),
  }[key];
  if (KEYS[key]) answer(KEYS[key]);
  else if (act) act();
  else if (key === " " && event.target.tagName !== "BUTTON" && !byId("pause").hidden) pause();
  else return;
  event.preventDefault();
});
document.querySelectorAll("[data-answer]").forEach((button) => button.addEventListener("click", () => answer(button.dataset.answer)));
byId("undo").addEventListener("click", undo);
byId("closer").addEventListener("click", () => zoom(1.5));
byId("further").addEventListener("click", () => zoom(1 / 1.5));
byId("whole").addEventListener("click", () => move({ scale: 1, x: 0, y: 0 }));
byId("pause").addEventListener("click", pause);
refresh();
