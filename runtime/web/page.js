// The page: fetches the state once a second and shows it. Names and messages are text, never markup.

import { CHARTS, Chart } from "/charts.js";
import { Pictures } from "/pictures.js";

const POLL_MS = 1000;
const KEPT_SAMPLES = 180;
const KEPT_EVENTS = 200;
const STATES = {
  connected: ["good", "Live"],
  quiet: ["warn", "No frames"],
  starting: ["idle", "Starting"],
  reconnecting: ["bad", "Down"],
  ended: ["idle", "Ended"],
};
const EVENT_LEVELS = {
  started: "", connected: "good", resized: "", gap: "warn", stale: "warn", stalled: "bad", reconnecting: "bad",
  ended: "warn", error: "bad",
};

const byId = (id) => document.getElementById(id);
const cards = new Map();
const isCalm = matchMedia("(prefers-reduced-motion: reduce)");
const CALM_MS = 1000;
const seen = { run: "", sample: 0, event: 0 };
let lastAnswer = 0;
let moving = 0;

const pictures = new Pictures((name, bitmap, isLive) => cards.get(name)?.paint(bitmap, isLive), showVeils);

class Card {
  constructor(name, sampled) {
    this.name = name;
    this.samples = [];
    this.level = "";
    this.element = byId("card").content.firstElementChild.cloneNode(true);
    this.canvas = this.element.querySelector("canvas");
    this.context = this.canvas.getContext("2d", { alpha: false });
    this.element.querySelector(".name").textContent = name;
    this.element.dataset.source = name;
    this.charts = CHARTS.map((spec) => new Chart(spec, sampled));
    this.element.querySelector(".charts").replaceChildren(...this.charts.map((chart) => chart.element));
    this.canvas.setAttribute("aria-label", `Picture of ${name} with proposals`);
    this.painted = 0;
    pictures.watch(this.element, name);
  }

  paint(bitmap, isLive) {
    // Users who prefer reduced motion get one picture a second.
    const now = performance.now();
    if (isCalm.matches && now - this.painted < CALM_MS && this.element.dataset.live === String(isLive)) return;
    this.painted = now;
    if (this.canvas.width !== bitmap.width || this.canvas.height !== bitmap.height) {
      this.canvas.width = bitmap.width;
      this.canvas.height = bitmap.height;
    }
    this.context.drawImage(bitmap, 0, 0);
    this.element.dataset.live = isLive;
    this.element.dataset.pictures = Number(this.element.dataset.pictures || 0) + 1;
  }

  update(row, newest) {
    const [level, word] = STATES[row.state] ?? ["idle", row.state];
    const pill = this.element.querySelector(".state");
    const isLong = row.frame_age_s !== null && row.frame_age_s >= 2 && level !== "good";
    pill.textContent = isLong ? `${word} for ${ageText(row.frame_age_s)}` : word;
    pill.dataset.level = level;
    this.element.dataset.level = level;
    if (this.level && this.level !== level) announce(`${this.name}: ${word}`);
    this.level = level;
    const problem = this.element.querySelector(".problem");
    problem.textContent = row.last_problem;
    problem.hidden = level === "good" || !row.last_problem;
    for (const key of ["num_dropped", "num_stale", "num_reconnects"]) {
      this.element.querySelector(`[data-figure="${key}"]`).textContent = row[key].toLocaleString("en");
    }
    const size = row.size_wh ? `${row.size_wh[0]}\u00d7${row.size_wh[1]}` : "\u2013";
    this.element.querySelector('[data-figure="size"]').textContent = size;
    this.samples = [...this.samples, ...row.samples].slice(-KEPT_SAMPLES);
    this.charts.forEach((chart) => chart.update(this.samples, newest));
  }

  // Covers a picture of unknown age with a text; an empty text removes the cover.
  veil(text) {
    const veil = this.element.querySelector(".veil");
    if (veil.textContent !== text) veil.textContent = text;
    veil.hidden = !text;
    if (text) this.element.dataset.live = false;
  }
}

async function poll() {
  try {
    const answer = await fetch(`/api/v1/status?after_sample=${seen.sample}&after_event=${seen.event}`, {
      credentials: "same-origin", signal: AbortSignal.timeout(5000),
    });
    if (answer.status === 401) {
      location.assign("/login");
      return;
    }
    if (!answer.ok) throw new Error(answer.status);
    const state = await answer.json();
    if (seen.run && seen.run !== state.run) {
      // The server belongs to another run now.
      location.reload();
      return;
    }
    lastAnswer = performance.now();
    show(state);
  } catch (error) {
    console.warn(error);
    lose();
  } finally {
    setTimeout(poll, document.hidden ? 5 * POLL_MS : POLL_MS);
  }
}

function lose() {
  const silent = performance.now() - lastAnswer;
  if (silent < 2500) return;
  const text = `No answer from the run for ${ageText(silent / 1000)}`;
  byId("lost").textContent = `${text}. The pictures are not live.`;
  byId("lost").hidden = false;
  setPill(byId("summary"), "bad", "No connection");
  showVeils();
}

function showVeils() {
  const isLost = !byId("lost").hidden;
  for (const [name, card] of cards) {
    if (isLost) card.veil("NOT LIVE: no connection");
    else if (pictures.isPaused) card.veil("NOT LIVE: paused");
    else card.veil(pictures.isSilent(name) ? "NOT LIVE: no pictures arrive" : "");
  }
}

function show(state) {
  byId("lost").hidden = true;
  seen.run = state.run;
  seen.sample = state.sample;
  byId("version").textContent = state.version;
  byId("model").textContent = state.model ? `${state.model} \u00b7 ${state.backend}` : "The model is loading";
  byId("logout").hidden = !state.login;
  showSources(state);
  showSummary(state);
  showView(state.view);
  showEvents(state.events);
  showOutputs(state.outputs);
}

function showSources(state) {
  const names = new Set(state.sources.map((row) => row.name));
  for (const [name, card] of cards) {
    if (!names.has(name)) {
      pictures.forget(card.element);
      card.element.remove();
      cards.delete(name);
    }
  }
  for (const row of state.sources) {
    if (!cards.has(row.name)) {
      const card = new Card(row.name, state.sampled);
      cards.set(row.name, card);
      byId("sources").append(card.element);
    }
    const card = cards.get(row.name);
    card.update(row, state.sample);
  }
  showVeils();
  byId("empty").hidden = state.sources.length > 0;
}

function showSummary(state) {
  const total = state.sources.length;
  const up = state.sources.filter((row) => row.is_up).length;
  const words = { model_hangs: "The model hangs", run_hangs: "The run hangs", starting: "Starting" };
  if (words[state.health]) setPill(byId("summary"), state.health === "starting" ? "idle" : "bad", words[state.health]);
  else setPill(byId("summary"), up === total ? "good" : up ? "warn" : "bad", `${up} of ${total} sources up`);
  document.title = up < total ? `(${total - up} down) EdgeRPN` : "EdgeRPN";
}

function setPill(pill, level, text) {
  pill.dataset.level = level;
  pill.textContent = text;
}

// While the user moves a slider, the state of the server does not move it.
function showView(view) {
  if (performance.now() - moving < 1500) return;
  byId("score").value = view.min_score;
  byId("top").max = Math.max(100, view.top);
  byId("top").value = view.top;
  byId("nms").value = view.nms_iou;
  showValues();
}

function showValues() {
  byId("score-value").textContent = Number(byId("score").value).toFixed(2);
  byId("top-value").textContent = byId("top").value;
  byId("nms-value").textContent = Number(byId("nms").value).toFixed(2);
}

function showEvents(events) {
  const list = byId("events");
  for (const event of events) {
    seen.event = Math.max(seen.event, event.id);
    const first = list.firstElementChild;
    // A repeated event replaces the previous line.
    if (event.repeated > 1 && first && first.dataset.source === event.source && first.dataset.kind === event.event) first.remove();
    list.prepend(eventLine(event));
  }
  while (list.children.length > KEPT_EVENTS) list.lastElementChild.remove();
}

function eventLine(event) {
  const line = document.createElement("li");
  line.dataset.source = event.source;
  line.dataset.kind = event.event;
  const time = line.appendChild(document.createElement("time"));
  time.dateTime = event.happened_at;
  time.textContent = new Date(event.happened_at).toLocaleTimeString("en-GB");
  const kind = line.appendChild(document.createElement("span"));
  kind.className = "kind";
  kind.dataset.level = EVENT_LEVELS[event.event] ?? "";
  kind.textContent = event.repeated > 1 ? `${event.event} \u00d7${event.repeated}` : event.event;
  const text = line.appendChild(document.createElement("span"));
  text.className = "text";
  text.append(event.message);
  if (event.fix) {
    const fix = text.appendChild(document.createElement("span"));
    fix.className = "fix";
    fix.textContent = `. ${event.fix}`;
  }
  return line;
}

function showOutputs(outputs) {
  byId("outputs-part").hidden = !outputs.length;
  byId("outputs").replaceChildren(...outputs.map((output) => {
    const row = document.createElement("tr");
    const state = output.is_failing ? output.last_error || "failing" : "OK";
    for (const value of [output.name, output.written, output.queued, output.dropped, output.errors, state]) {
      row.appendChild(document.createElement("td")).textContent = typeof value === "number" ? value.toLocaleString("en") : value;
    }
    return row;
  }));
}

let isSending = false;
let isChanged = false;

// Sends the newest values of the sliders, one request at a time.
async function sendView() {
  isChanged = true;
  if (isSending) return;
  isSending = true;
  while (isChanged) {
    isChanged = false;
    const view = {
      min_score: Number(byId("score").value), top: Number(byId("top").value), nms_iou: Number(byId("nms").value),
    };
    try {
      await fetch("/api/v1/view", {
        method: "PUT", headers: { "Content-Type": "application/json" }, body: JSON.stringify(view), credentials: "same-origin",
      });
    } catch {
      // `poll` reports lost connections.
    }
  }
  isSending = false;
}

function announce(text) {
  byId("announcer").textContent = text;
}

function ageText(seconds) {
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return `${Math.round(seconds / 3600)} h`;
}

byId("pause").addEventListener("click", () => {
  pictures.pause(!pictures.isPaused);
  byId("pause").setAttribute("aria-pressed", pictures.isPaused);
  byId("pause").textContent = pictures.isPaused ? "Resume pictures" : "Pause pictures";
  showVeils();
});
for (const id of ["score", "top", "nms"]) {
  byId(id).addEventListener("input", () => {
    moving = performance.now();
    showValues();
    sendView();
  });
}
poll();
