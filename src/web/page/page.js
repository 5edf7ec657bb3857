"use strict";
// The page of `autossm web`. It gets everything from /api/live: first the whole board, then what changes.
// All text is set as text: what tunnels and services say is never taken for markup.

const DAY = 86400_000;
const SVG = "http://www.w3.org/2000/svg";
const $ = (id) => document.getElementById(id);

/** What each state is called, how it looks, and how urgent it is: the most urgent stands first. */
const STATES = {
  gone: { word: "not running", tone: "bad", rank: 0, group: "down" },
  deaf: { word: "not answering", tone: "bad", rank: 0, group: "down" },
  waiting: { word: "down", tone: "bad", rank: 1, group: "down" },
  stopped: { word: "stopped", tone: "bad", rank: 2, group: "down" },
  starting: { word: "starting", tone: "busy", rank: 3, group: "down" },
  interrupted: { word: "interrupted", tone: "soft", rank: 4, group: "interrupted" },
  degraded: { word: "degraded", tone: "soft", rank: 5, group: "degraded" },
  draining: { word: "draining", tone: "soft", rank: 6, group: "draining" },
  stopping: { word: "stopping", tone: "busy", rank: 7, group: "down" },
  unknown: { word: "not known", tone: "soft", rank: 8, group: "not known" },
  up: { word: "up", tone: "good", rank: 9, group: "up" },
  resuming: { word: "resuming", tone: "soft", rank: 9, group: "up" },
  silent: { word: "no answer", tone: "mute" },
};
/** The service closes each data channel every hour: until this is over that is nothing that needs attention. */
const CALM = 5000;
const GROUPS = ["down", "interrupted", "degraded", "draining", "not known", "up"];
/** How high each kind of span stands in the timeline: what is wrong is told by more than its colour. */
const SPANS = { up: [10, 20], degraded: [8, 22], interrupted: [6, 24], down: [1, 29], unknown: [14, 16] };
const AREAS = Object.keys(SPANS);
const LINES = ["resumed", "changed", "degraded", "interrupted", "down", "lost"];
const SPAN_WORDS = { up: "Up", degraded: "Degraded", interrupted: "Interrupted", down: "Down", unknown: "Not known" };
/** Spans shorter than so many seconds would not be seen, and are drawn as a line. */
const SHORT = 180;
/** What the timeline shows beyond now, so that a line at its end is whole. */
const MARGIN = 300_000;

const rows = new Map();
let skew = 0;
let origin = 0;
let only = null;
let words = "";
const announced = new Map();

// Words for people

const now = () => Date.now() + skew;
const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const hours = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const days = new Intl.DateTimeFormat(undefined, { weekday: "long", day: "numeric", month: "long" });
const date = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });
const count = new Intl.NumberFormat("en").format;

/** `3 d 4 h`, `2 h 5 min`, `4 min`, `12 s`. */
function span(ms) {
  const s = Math.max(0, Math.round(ms / 1000));
  if (s < 60) return `${s} s`;
  const m = Math.floor(s / 60);
  if (m < 60) return m < 10 && s % 60 ? `${m} min ${s % 60} s` : `${m} min`;
  const h = Math.floor(m / 60);
  if (h < 24) return m % 60 ? `${h} h ${m % 60} min` : `${h} h`;
  return h % 24 ? `${Math.floor(h / 24)} d ${h % 24} h` : `${h / 24} d`;
}
const lasted = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : ms < 60_000 ? `${(ms / 1000).toFixed(1)} s` : span(ms));

function bytes(n) {
  let unit = 0;
  while (n >= 999.5 && unit < 4) { n /= 1000; unit += 1; }
  return `${n >= 9.95 || unit === 0 ? Math.round(n) : n.toFixed(1)} ${["B", "kB", "MB", "GB", "TB"][unit]}`;
}
const plural = (n, one, many) => `${count(n)} ${n === 1 ? one : many}`;
const at = (text) => (text ? Date.parse(text) : null);

// Building blocks

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== undefined) element.setAttribute(name, value);
  element.append(...children);
  return element;
}
function draw(tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}
/** Nothing is touched that is already so: 500 rows are looked at every second. */
function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
function set(element, name, value) {
  if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

// A row

function newRow(name) {
  const id = `t-${name}`;
  const state = make("div", { class: "state" }, make("i"), make("b"), make("small"));
  const button = make("button", { type: "button", "aria-expanded": "false", "aria-controls": `${id}-detail`, "aria-describedby": `${id}-why` }, name);
  const label = make("div", { class: "name" }, button, make("small"));
  const line = draw("svg", { class: "line", role: "img", preserveAspectRatio: "none" });
  for (const kind of AREAS) line.append(draw("path", { class: `p-${kind}` }));
  for (const kind of [...LINES, "at"]) line.append(draw("path", { class: `s-${kind}` }));
  const head = make("div", { class: "head" }, state, label, line);
  const sparks = ["open", "rate"].map((kind) => {
    const picture = draw("svg", { "aria-hidden": "true", preserveAspectRatio: "none" });
    picture.append(draw("path", { class: "area" }), draw("path", {}));
    const box = make("div", { class: `spark ${kind}` }, picture, make("span"), make("small", {}, kind === "open" ? "open" : ""));
    head.append(box);
    return box;
  });
  const why = make("p", { class: "why", id: `${id}-why` });
  const detail = make("div", { class: "detail", id: `${id}-detail`, hidden: "" });
  const element = make("li", { class: "row", id }, head, why, detail);
  why.hidden = true;
  const row = { name, element, state, button, label, line, sparks, why, detail, data: null, mark: null, opened: false, skipped: false, stale: false };
  head.addEventListener("click", (event) => {
    if (event.target.closest(".line") || (getSelection().type === "Range" && !event.target.closest("button"))) return;
    toggle(row);
  });
  // Rows that nobody sees are drawn when somebody does.
  element.addEventListener("contentvisibilityautostatechange", (event) => {
    row.skipped = event.skipped;
    if (!event.skipped) { age(row); if (row.stale) { drawLine(row); drawSparks(row); } }
  });
  line.addEventListener("pointermove", (event) => pointAt(row, event));
  line.addEventListener("pointerdown", (event) => pointAt(row, event));
  line.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") untip(); });
  return row;
}

/** Attempts and pauses take turns while no session can be had: that is one state for those who look at it. */
function stateOf({ lost, absence, status }) {
  if (lost) return absence;
  if (status.state === "starting" && status.failure) return "waiting";
  return status.state === "interrupted" && now() - at(status.since) < CALM ? "resuming" : status.state;
}
/** A daemon that is silent may just be restarted: until more is known its row stays where it is. */
function look({ data }) {
  const shown = STATES[stateOf(data)] ?? STATES.unknown;
  if (shown !== STATES.silent) return shown;
  const before = STATES[stateOf({ status: data.status })] ?? STATES.unknown;
  return { ...before, ...shown, before: before.word };
}
/** Nothing holds any more of what its daemon has said. */
const isLost = ({ data }) => data.lost && data.absence !== "silent";
/** Since when; what the timeline passes over, as the service's close every hour, is no end of being up. */
function since({ data: { lost, status, timeline } }) {
  const from = at(lost ?? status.since);
  const last = timeline.spans.at(-1);
  return from && !lost && status.state === "up" && last?.[1] === "up" ? Math.min(from, last[0]) : from;
}
/** It was so for all of the timeline, and nobody knows for how much longer. */
const isWhole = (row, from) => row.data.timeline.spans.length === 1 && from === row.data.timeline.spans[0][0];

/** Everything of a row that its status tells. */
function fill(row) {
  const { status } = row.data;
  const shown = look(row);
  set(row.element, "data-tone", shown.tone);
  set(row.element, "data-state", stateOf(row.data));
  say(row.state.children[1], shown.word);
  say(row.label.children[1], way(status).replace(/^(127\.0\.0\.1|\[::1\])(?=:)/, ""));
  set(row.label.children[1], "title", way(status));
  const { open = 0, held = 0 } = isLost(row) ? {} : status.connections;
  const number = row.sparks[0].children[1];
  if (number.dataset.is !== `${open} ${held}`) {
    number.dataset.is = `${open} ${held}`;
    number.replaceChildren(count(open), ...(held ? [make("em", {}, ` +${count(held)}`)] : []));
    number.title = `${plural(open, "connection", "connections")} open${held ? `, ${plural(held, "client", "clients")} waiting` : ""}`;
  }
  age(row);
}
const way = (status) => {
  const host = status.remote_host || (status.targets ?? []).join(", ") || "target";
  const listen = status.listen ?? [];
  if (!listen.length) return "";
  return `${listen[0] ?? ""}${listen.length > 1 ? ` +${listen.length - 1}` : ""} → ${status.remote_port ? `${host.includes(":") ? `[${host}]` : host}:${status.remote_port}` : host}`;
};

/** Everything of a row that the clock tells. */
function age(row) {
  const from = since(row);
  say(row.state.children[2], !from ? "" : isWhole(row, from) ? "> 1 d" : span(now() - from));
  const [first, rest] = reason(row);
  const text = first + rest;
  if (row.why.dataset.is !== text) {
    row.why.dataset.is = text;
    row.why.hidden = !text;
    row.why.replaceChildren(first, make("span", {}, rest));
  }
}

const CLASSES = {
  needs_change: "The configuration or this host needs a change",
  access: "Access was refused",
  target_not_connected: "The target is not connected",
  throttled: "The service throttles its calls",
  network: "Network or service",
};
const STEPS = {
  start: "Next try", failover: "A replacement is started", opening_over: "Given up", resuming_over: "Given up",
  rotation: "Rotation", drain_over: "Open connections are cut", stopping_over: "Stopped for good",
};

/** What keeps a session from serving. */
const INTERRUPTED = {
  closed: "Data channel closed", unanswered: "Data channel silent", agent_away: "Agent away", agent_silent: "Agent silent",
  gap: "Messages lost on the way",
};

/** Why a tunnel is not up, and what comes next: two parts of one sentence. */
function reason({ data: { status, lost, absence, why } }) {
  if (lost && absence === "silent") return ["", ""];
  if (lost) return [`The daemon does not ${absence === "gone" ? "run" : "answer"}${why ? `: ${dot(why)}` : "."}`, ` Look at systemctl status autossm@${status.name}.`];
  const next = status.next;
  const when = next?.at ? Math.max(0, at(next.at) - now()) : null;
  const then = next && STEPS[next.what] && next.what !== "rotation" && when !== null ? ` ${STEPS[next.what]} ${when < 1000 ? "now" : `in ${span(when)}`}.` : "";
  const failed = status.failure ? `${CLASSES[status.failure.class] ?? "Failed"}: ${dot(status.failure.text)}` : "";
  const down = (status.sessions ?? []).find((session) => session.interruption)?.interruption;
  switch (stateOf({ status })) {
    case "up": case "resuming": return ["", ""];
    case "degraded": {
      const there = status.destination;
      if (there?.state === "down") return [`The destination does not answer: ${dot(there.reason ?? "no reason given")}`, ` Since ${clock.format(at(there.since))}.`];
      const ready = (status.sessions ?? []).filter((session) => session.phase === "ready").length;
      return [`${ready} of ${status.sessions_wanted} sessions serve. ${failed}`.trim(), then];
    }
    case "interrupted": return [`${INTERRUPTED[down?.cause] ?? "Interrupted"}${down?.reason ? `: ${dot(down.reason)}` : "."}${["closed", "unanswered"].includes(down?.cause) ? " It is being resumed." : ""} Open connections wait.`, down?.failure ? ` ${dot(down.failure.text)}${then}` : then];
    case "draining": return ["New clients are held, because somebody has asked for that.", ` To let them in again: autossm resume ${status.name}`];
    case "starting": return ["", ""];
    case "waiting": return [failed || (next?.reason ? dot(next.reason) : ""), status.state === "starting" ? " Trying again now." : then];
    default: return [failed || (next?.reason ? dot(next.reason) : ""), then];
  }
}
const dot = (text) => (/[.!?]$/.test(text) ? text : `${text}.`);

// The timeline: one path for each kind of span, in seconds since `origin`, so that a minute later only the view moves

const seconds = (ms) => Math.round((ms - origin) / 1000);

function drawLine(row) {
  const { spans, marks } = row.data.timeline;
  const areas = Object.fromEntries(AREAS.map((kind) => [kind, ""]));
  const lines = Object.fromEntries(LINES.map((kind) => [kind, ""]));
  const end = now() + 10 * DAY;
  let [up, off] = [0, 0];
  const from = now() - DAY;
  spans.forEach(([start, kind], i) => {
    const until = spans[i + 1]?.[0] ?? end;
    const visible = Math.max(0, Math.min(until, now()) - Math.max(start, from));
    if (kind === "up" || kind === "degraded") up += visible;
    else if (kind !== "unknown") off += visible;
    const [x, width] = [seconds(start), Math.round((until - start) / 1000)];
    const [top, bottom] = SPANS[kind];
    // Nothing that went wrong is too short to be seen.
    const short = (Math.min(until, now()) - start) / 1000 < SHORT && kind !== "unknown";
    if (short && lines[kind] !== undefined) lines[kind] += `M${x} ${top}V${bottom}`;
    const [y, below] = short ? SPANS.up : [top, bottom];
    areas[short ? "up" : kind] += `M${x} ${y}h${width}V${below}h-${width}z`;
  });
  for (const [when, , kind] of marks) if (lines[kind] !== undefined) lines[kind] += kind === "lost" ? `M${seconds(when)} 3V27` : `M${seconds(when)} 10V20`;
  const paths = row.line.children;
  AREAS.forEach((kind, i) => set(paths[i], "d", areas[kind]));
  LINES.forEach((kind, i) => set(paths[AREAS.length + i], "d", lines[kind]));
  const closes = marks.filter(([, , kind]) => kind === "resumed").length;
  const share = up + off ? Math.floor((10000 * up) / (up + off)) / 100 : null;
  set(row.line, "aria-label", share === null ? "Nothing is known of the last 24 hours"
    : `Last 24 hours: up ${share} % of the time; data channel closed and resumed ${plural(closes, "time", "times")}; ${plural(marks.length - closes, "other event", "other events")}`);
  slide(row);
}
function slide(row) {
  row.stale = false;
  set(row.line, "viewBox", `${seconds(now() - DAY)} 0 ${(DAY + MARGIN) / 1000} 30`);
}

function drawSpark(box, values) {
  const n = values.length;
  const top = Math.max(1, ...values);
  set(box.children[0], "viewBox", `0 0 ${Math.max(1, n - 1)} 20`);
  const points = values.map((value, i) => `${i} ${(19 - (18 * value) / top).toFixed(1)}`).join("L");
  set(box.children[0].children[0], "d", n > 1 ? `M0 20L${points}L${n - 1} 20z` : "");
  set(box.children[0].children[1], "d", n > 1 ? `M${points}` : "");
}
function drawSparks(row) {
  const { open, rate } = row.data.samples;
  drawSpark(row.sparks[0], open);
  drawSpark(row.sparks[1], rate);
  say(row.sparks[1].children[1], `${bytes(rate.at(-1) ?? 0)}/s`);
}

// What is under the pointer, or where the keyboard is

function tip(row, x, title, text) {
  const box = $("tip");
  box.replaceChildren(make("b", {}, title), text);
  box.hidden = false;
  const line = row.line.getBoundingClientRect();
  const left = Math.min(Math.max(8, line.left + x - box.offsetWidth / 2), document.documentElement.clientWidth - box.offsetWidth - 8);
  const above = line.top - box.offsetHeight - 6;
  box.style.left = `${left + scrollX}px`;
  box.style.top = `${(above > 4 ? above : line.bottom + 6) + scrollY}px`;
}
function untip() {
  $("tip").hidden = true;
  for (const row of rows.values()) if (row.mark !== null) { row.mark = null; set(row.line.lastChild, "d", ""); }
}
/** Everything that the timeline has to tell, by time: [start, length, text]. */
function happenings(row) {
  const { spans, marks } = row.data.timeline;
  const from = now() - DAY;
  const all = spans.map(([start, kind, text], i) => {
    const until = spans[i + 1]?.[0] ?? now();
    return { start: Math.max(start, from), until, text: `${SPAN_WORDS[kind]} for ${lasted(until - start)}${text ? `: ${text}` : ""}`, dull: kind === "up" || kind === "unknown" };
  });
  for (const [start, length, , text] of marks) all.push({ start, until: start + length, text, mark: true });
  return all.filter((one) => one.until >= from).sort((a, b) => a.start - b.start);
}
/** `14:02:11`, with the day where it is not this one. */
function stamp(ms) {
  const [then, today] = [new Date(ms).setHours(0, 0, 0, 0), new Date(now()).setHours(0, 0, 0, 0)];
  return then === today ? clock.format(ms) : `${Math.round((today - then) / DAY) === 1 ? "yesterday" : date.format(ms)}, ${clock.format(ms)}`;
}

function pointAt(row, event) {
  const line = row.line.getBoundingClientRect();
  const x = event.clientX - line.left;
  const when = now() - DAY + ((DAY + MARGIN) * x) / line.width;
  const near = (DAY * (event.pointerType === "touch" ? 14 : 5)) / line.width;
  const all = happenings(row);
  const loud = all.filter((one) => !one.dull && one.start - near <= when && when <= Math.max(one.until, one.start) + near);
  loud.sort((a, b) => Math.abs(a.start - when) - Math.abs(b.start - when));
  const one = loud[0] ?? all.find((one) => one.dull && one.start <= when && when < one.until);
  if (one) tip(row, x, one.dull ? `since ${stamp(one.start)}` : stamp(one.start), one.text);
  else untip();
}
/** Steps through what has happened, from the latest back. */
function step(row, by) {
  const all = happenings(row).filter((one) => !one.dull);
  if (!all.length) { announce(`${row.name}: nothing has happened in 24 hours`); return; }
  row.mark = row.mark === null ? all.length - 1 : Math.min(all.length - 1, Math.max(0, row.mark + by));
  const one = all[row.mark];
  const x = ((one.start - now() + DAY) / (DAY + MARGIN)) * row.line.getBoundingClientRect().width;
  set(row.line.lastChild, "d", `M${seconds(one.start)} 0V30`);
  tip(row, x, stamp(one.start), one.text);
  announce(`${stamp(one.start)}: ${one.text}`);
}

// Details

function toggle(row, open = !row.opened) {
  row.opened = open;
  row.detail.hidden = !open;
  set(row.button, "aria-expanded", String(open));
  history.replaceState(null, "", open ? `#${row.name}` : location.pathname);
  if (open) { fillDetail(row); loadEvents(row); }
  else row.detail.replaceChildren();
}

function fillDetail(row) {
  if (!row.opened) return;
  if (!row.detail.firstChild) {
    row.facts = make("dl", { class: "facts" });
    row.sessions = make("tbody");
    row.events = make("ol", { class: "events", tabindex: "0", "aria-label": `Events of ${row.name}` });
    const heads = ["Session", "State", "Age", "Target", "Open", "Resumed", "Round trip"];
    row.detail.append(
      make("div", {}, make("h3", {}, "Tunnel"), row.facts),
      make("div", {}, make("h3", {}, "Sessions"), make("div", { class: "scroll" },
        make("table", { class: "sessions" }, make("thead", {}, make("tr", {}, ...heads.map((head, i) => make("th", { scope: "col", ...(i > 3 && { class: "n" }) }, head)))), row.sessions)),
      make("h3", {}, "Events"), row.events));
  }
  const { status } = row.data;
  const connections = status.connections ?? {};
  const expires = at(status.credentials?.expires);
  const facts = [
    ["Listens on", code((status.listen ?? []).join(", "))],
    ["Target", code((status.targets ?? []).join(", "))],
    ["Destination", code(status.remote_host ? `${status.remote_host}:${status.remote_port}` : `port ${status.remote_port} of the target`)],
    ["Connections", `${count(connections.open ?? 0)} open, ${count(connections.held ?? 0)} waiting, ${count(connections.served ?? 0)} served, ${count(connections.failed ?? 0)} failed`],
    ["Longest wait", connections.longest_hold_ms ? lasted(connections.longest_hold_ms) : "none"],
    ["Sent, received", `${bytes(status.up_bytes ?? 0)}, ${bytes(status.down_bytes ?? 0)}`],
    ["Resumed", `${count(status.resumes?.last_day ?? 0)} times in 24 h${status.resumes?.last_ms != null ? `, last in ${lasted(status.resumes.last_ms)}` : ""}`],
    ["Agent round trip", status.agent_rtt_ms == null ? "not measured yet" : `${status.agent_rtt_ms.toFixed(1)} ms`],
    ["Credentials", expires ? `expire in ${span(expires - now())}` : { none: "none yet", never: "do not expire" }[status.credentials?.expiry] ?? "unknown"],
    ["Daemon", !status.daemon?.pid ? "has not been heard of" : `${status.daemon?.version ?? ""}, process ${status.daemon?.pid ?? ""}, for ${span(now() - at(status.daemon?.started))}`],
  ];
  row.facts.replaceChildren(...facts.flatMap(([term, text]) => [make("dt", {}, term), make("dd", {}, text)]));
  const sessions = (status.sessions ?? []).map((session) => make("tr", {},
    make("td", {}, code(session.id ?? `number ${session.generation}`)), make("td", {}, session.phase), make("td", {}, span(now() - at(session.began))),
    make("td", {}, code(session.target ?? "")), make("td", { class: "n" }, count(session.open)), make("td", { class: "n" }, `${session.resumes}×`),
    make("td", { class: "n" }, session.agent_rtt_ms == null ? "–" : `${session.agent_rtt_ms.toFixed(1)} ms`)));
  row.sessions.replaceChildren(...(sessions.length ? sessions : [make("tr", {}, make("td", { colspan: "7" }, "There is none."))]));
}
const code = (text) => make("code", {}, text);

/** Events that only draw the past, or that nobody wants to read. */
const QUIET = new Set(["begun", "state"]);
const tones = { error: "bad", warn: "soft" };

async function loadEvents(row) {
  const asked = (row.asked = Symbol());
  let events;
  try {
    const answer = await fetch(`/api/events?last=100&tunnel=${encodeURIComponent(row.name)}`);
    if (!answer.ok) throw new Error(String(answer.status));
    ({ events } = await answer.json());
  } catch { return; }
  if (row.asked !== asked || !row.opened) return;
  const items = [];
  let day = days.format(now());
  for (const event of events.reverse()) {
    if (QUIET.has(event.event) || event.level === "debug") continue;
    const when = at(event.at);
    if (days.format(when) !== day) items.push(make("li", { class: "day" }, (day = days.format(when))));
    const tone = tones[event.level] ?? (["ready", "resumed"].includes(event.event) ? "good" : "");
    items.push(make("li", { "data-tone": tone }, make("time", { datetime: event.at }, clock.format(when)), make("b", {}, event.event.replaceAll("_", " ")), make("p", {}, event.message)));
  }
  row.events.replaceChildren(...(items.length ? items : [make("li", { class: "none" }, "Nothing is recorded.")]));
}

// The whole

/** Puts a row where it belongs: what is broken first, by urgency, then by name. */
function place(row) {
  const { rank } = look(row);
  const list = (rank < STATES.up.rank ? $("broken") : $("fine")).querySelector("ul");
  const key = `${rank} ${row.name}`;
  // What is hidden cannot keep the focus.
  list.parentNode.hidden = false;
  if (row.key === key && row.element.parentNode === list) return;
  row.key = key;
  const after = [...list.children].find((other) => other !== row.element && rows.get(other.dataset.name).key > key) ?? null;
  // Keeps the focus and what is open, where the browser can.
  if (row.element.isConnected && list.moveBefore) list.moveBefore(row.element, after);
  else {
    const focused = row.element.contains(document.activeElement) ? document.activeElement : null;
    list.insertBefore(row.element, after);
    focused?.focus({ preventScroll: true });
  }
}
const matches = (row) => (!only || look(row).group === only)
  && (!words || words.split(/\s+/).every((word) => `${row.name} ${way(row.data.status)} ${(row.data.status.targets ?? []).join(" ")} ${look(row).word}`.toLowerCase().includes(word)));

/** Headline, figures, chips: after anything has changed, once a frame. */
let due = false;
function soon() {
  if (due) return;
  due = true;
  const perform = () => { due = false; summarize(); };
  if (document.hidden) perform();
  else requestAnimationFrame(perform);
}
function summarize() {
  const all = [...rows.values()];
  const groups = new Map(GROUPS.map((group) => [group, 0]));
  let [open, held, rate, resumes, hidden] = [0, 0, 0, 0, 0];
  for (const row of all) {
    const { group } = look(row);
    groups.set(group, groups.get(group) + 1);
    if (!isLost(row)) { open += row.data.status.connections?.open ?? 0; held += row.data.status.connections?.held ?? 0; }
    rate += row.data.samples.rate.at(-1) ?? 0;
    resumes += row.data.status.resumes?.last_day ?? 0;
    const fits = matches(row);
    if (row.element.hidden === fits) row.element.hidden = !fits;
    hidden += fits ? 0 : 1;
  }
  const up = groups.get("up");
  const down = groups.get("down");
  const soft = all.length - up - down;
  const worst = all.filter((row) => look(row).rank < STATES.up.rank).sort((a, b) => (a.key < b.key ? -1 : 1));
  const headline = !all.length ? "No tunnels"
    : up === all.length ? (up === 1 ? `${all[0].name} is up` : `All ${count(up)} tunnels are up`)
    : down ? (down === all.length ? (down === 1 ? `${worst[0].name} is ${called(worst[0])}` : `All ${count(down)} tunnels are down`) : down === 1 ? `${worst[0].name} is ${called(worst[0])}` : `${count(down)} of ${count(all.length)} tunnels are down`)
    : soft === 1 ? `${worst[0].name} is ${called(worst[0])}` : `${count(soft)} of ${count(all.length)} tunnels need a look`;
  say($("headline"), headline);
  set($("headline"), "data-tone", down ? "bad" : soft ? "soft" : "good");
  const parts = GROUPS.filter((group) => groups.get(group)).map((group) => `${count(groups.get(group))} ${group}`);
  const longest = worst.filter((row) => !down || look(row).group === "down").map((row) => since(row)).filter(Boolean);
  say($("subline"), !all.length ? "" : !worst.length ? calm(all)
    : `${all.length > 1 ? `${parts.join(", ")}. ` : ""}${longest.length > 1 ? "The longest since" : "Since"} ${stamp(Math.min(...longest))}.`);
  document.title = all.length && up < all.length ? `${headline} · autossm` : "autossm";
  const colour = down ? "d8392c" : soft ? "e5a52c" : "2f8d65";
  set($("icon"), "href", `data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 24 24' fill='none' stroke='%23${colour}' stroke-width='3.4' stroke-linecap='round'><path d='M3 21v-8a9 9 0 0 1 18 0v8M9 21v-8a3 3 0 0 1 6 0v8'/></svg>`);
  say($("open"), count(open));
  say($("held"), count(held));
  $("held").classList.toggle("warn", held > 0);
  say($("rate"), `${bytes(rate)}/s`);
  say($("resumes"), count(resumes));
  for (const id of ["figures", "axis", "keys", "legend"]) $(id).hidden = !all.length;
  $("tools").hidden = all.length < 2;
  chips(groups, all.length);
  for (const id of ["broken", "fine"]) {
    const list = $(id).querySelector("ul");
    $(id).hidden = ![...list.children].some((row) => !row.hidden);
  }
  say($("broken-title"), `Needs attention · ${count(all.length - up)}`);
  say($("fine-title"), `Up · ${count(up)}`);
  const empty = $("empty");
  empty.hidden = all.length > hidden;
  if (all.length && hidden === all.length) empty.replaceChildren(make("strong", {}, "No tunnel fits the filter"), "Esc clears it.");
  else if (!all.length) nothing(empty);
}
/** How long it has been quiet. */
function calm(all) {
  const from = Math.max(...all.map((row) => since(row) ?? 0));
  return from ? `Without a gap for ${all.every((row) => isWhole(row, since(row))) ? "more than a day" : span(now() - from)}.` : "";
}
function nothing(box) {
  box.replaceChildren(make("strong", {}, "There is no tunnel to show"),
    "No control socket was found in ", code(boardInfo.runtime_dir ?? "/run/autossm"), ". Start the tunnels with ", code("systemctl start autossm.target"),
    " or ", code("autossm run"), ", and see with ", code("autossm check"), " which there are. They appear here by themselves.");
}
function chips(groups, total) {
  const wanted = [["all", total], ...GROUPS.map((group) => [group, groups.get(group)]).filter(([group, n]) => n || group === only)];
  const key = wanted.join() + only;
  if ($("chips").dataset.is === key) return;
  const focused = document.activeElement?.dataset?.group;
  $("chips").dataset.is = key;
  $("chips").replaceChildren(...wanted.map(([group, n]) => {
    const chip = make("button", { type: "button", "data-group": group, "aria-pressed": String((only ?? "all") === group) }, `${group[0].toUpperCase()}${group.slice(1)} ${count(n)}`);
    chip.addEventListener("click", () => { only = group === "all" ? null : group; soon(); });
    return chip;
  }));
  if (focused) $("chips").querySelector(`[data-group="${focused}"]`)?.focus();
}
function axis() {
  const box = $("axis").firstElementChild;
  const start = new Date(now() - DAY);
  start.setHours(start.getHours() + 1, 0, 0, 0);
  const marks = [make("span", { class: "first" }, "24 h ago"), make("span", { class: "last" }, "now")];
  marks[1].style.left = "100%";
  for (let hour = new Date(start); hour < now(); hour.setHours(hour.getHours() + 1)) {
    if (hour.getHours() % 6) continue;
    const share = (hour - (now() - DAY)) / DAY;
    if (share < 0.12 || share > 0.92) continue;
    const mark = make("span", {}, hours.format(hour));
    mark.style.left = `${100 * share}%`;
    marks.push(mark);
  }
  box.replaceChildren(...marks);
}
const called = (row) => look(row).before ?? look(row).word;
function announce(text) {
  say($("announce"), text);
}

// What comes from the server

let boardInfo = {};

function take(data) {
  let row = rows.get(data.name);
  const fresh = !row;
  if (fresh) {
    row = newRow(data.name);
    row.element.dataset.name = data.name;
    rows.set(data.name, row);
    row.data = { status: {}, lost: null, timeline: { spans: [], marks: [] }, samples: { open: [], rate: [] } };
  }
  Object.assign(row.data, data);
  // Before anything is changed on it: Chromium's moveBefore forgets which styles are to be looked at again.
  place(row);
  if (data.status || "lost" in data) fill(row);
  if (row.skipped && !fresh) row.stale = true;
  else {
    if (data.timeline) drawLine(row);
    if (data.samples) drawSparks(row);
  }
  fillDetail(row);
  if (row.opened && data.timeline) loadEvents(row);
  const word = called(row);
  const { rank } = look(row);
  const before = announced.get(data.name);
  if (!fresh && before.word !== word && Math.min(rank, before.rank) < STATES.up.rank) {
    announce(`${data.name} is ${word}. ${reason(row)[0]}`);
    row.element.classList.remove("news");
    void row.element.offsetWidth;
    row.element.classList.add("news");
  }
  announced.set(data.name, { word, rank });
  soon();
}
/** What has come and is not shown yet. Hundreds may change at once: each frame takes what it has time for. */
const waiting = new Map();
function later(tunnels) {
  const first = waiting.size === 0;
  for (const data of tunnels) waiting.set(data.name, { ...waiting.get(data.name), ...data });
  if (first) requestAnimationFrame(work);
  // Pages in the background get no frames; their title is looked at all the same.
  if (document.hidden) work();
}
function work() {
  const until = performance.now() + 5;
  // Whose state is another one goes first.
  const turned = [...waiting.values()].filter((data) => data.status && stateOf(data) !== rows.get(data.name)?.element.dataset.state);
  for (const data of [...turned, ...waiting.values()]) {
    if (!waiting.delete(data.name)) continue;
    take(data);
    if (performance.now() > until && !document.hidden) break;
  }
  if (waiting.size) requestAnimationFrame(work);
}
function drop(name) {
  waiting.delete(name);
  rows.get(name)?.element.remove();
  rows.delete(name);
  announced.delete(name);
  soon();
}

function listen() {
  const stream = new EventSource("/api/live");
  const on = (kind, perform) => stream.addEventListener(kind, (event) => { perform(JSON.parse(event.data)); heard(); });
  on("board", (board) => {
    boardInfo = board;
    origin = now() - DAY;
    say($("host"), board.host);
    say($("version"), `autossm ${board.version}`);
    waiting.clear();
    const there = new Set(board.tunnels.map((tunnel) => tunnel.name));
    for (const name of [...rows.keys()]) if (!there.has(name)) drop(name);
    for (const tunnel of board.tunnels) take(tunnel);
    axis();
    soon();
    const wanted = rows.get(decodeURIComponent(location.hash.slice(1)));
    if (wanted && !wanted.opened) { toggle(wanted, true); wanted.element.scrollIntoView({ block: "center" }); }
  });
  on("tunnels", (tunnels) => later(tunnels));
  on("removed", ({ name }) => drop(name));
  on("samples", (samples) => {
    for (const [name, [open, rate]] of Object.entries(samples)) {
      const row = rows.get(name);
      if (!row) continue;
      for (const [kind, value] of [["open", open], ["rate", rate]]) {
        const values = row.data.samples[kind];
        values.push(value);
        if (values.length > boardInfo.samples) values.shift();
      }
      if (row.skipped) row.stale = true;
      else drawSparks(row);
    }
    soon();
  });
  on("alive", ({ now: then }) => { skew = then - Date.now(); });
  stream.onerror = () => {
    lost();
    // A browser gives up where the answer is not a stream; this page does not.
    if (stream.readyState === EventSource.CLOSED) setTimeout(listen, 2000);
  };
}
let last = 0;
function heard() {
  last = Date.now();
  set($("live"), "data-live", "yes");
  say($("live"), "live");
  document.body.classList.remove("lost");
}
function lost() {
  set($("live"), "data-live", "lost");
  say($("live"), last ? `no answer since ${clock.format(last + skew)}, trying again` : "no answer, trying again");
  document.body.classList.add("lost");
}

setInterval(() => {
  if (last && Date.now() - last > 12_000) lost();
  if (document.hidden || document.body.classList.contains("lost")) return;
  for (const row of rows.values()) {
    if (stateOf(row.data) !== row.element.dataset.state) take({ name: row.name, status: row.data.status });
    else if (!row.skipped) age(row);
  }
}, 1000);
setInterval(() => {
  if (document.hidden) return;
  for (const row of rows.values()) { if (!row.skipped) slide(row); else row.stale = true; fillDetail(row); }
  axis();
  soon();
}, 60_000);
document.addEventListener("visibilitychange", () => { if (!document.hidden) { for (const row of rows.values()) slide(row); axis(); soon(); } });

$("filter").addEventListener("input", (event) => { words = event.target.value.trim().toLowerCase(); soon(); });
addEventListener("scroll", untip, { passive: true });
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target === $("filter");
  if (event.key === "/" && !typing) { event.preventDefault(); $("filter").focus(); return; }
  if (event.key === "Escape") {
    untip();
    if (typing || words || only) { $("filter").value = words = ""; only = null; soon(); }
    return;
  }
  const row = rows.get(event.target.closest?.(".row")?.dataset.name);
  const arrows = { ArrowUp: -1, ArrowDown: 1 }[event.key];
  if (arrows && !event.target.closest?.(".events")) {
    const buttons = [...document.querySelectorAll(".row:not([hidden]) .name button")];
    const to = row ? buttons[buttons.indexOf(row.button) + arrows] : typing && arrows > 0 ? buttons[0] : null;
    if (to) { event.preventDefault(); untip(); to.focus(); }
  } else if (row && event.target === row.button && (event.key === "ArrowLeft" || event.key === "ArrowRight")) {
    event.preventDefault();
    step(row, event.key === "ArrowLeft" ? -1 : 1);
  }
});

listen();
