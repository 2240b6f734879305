// The operator page: polls /live and /keys once a second and /course once a minute, and draws.
// Sums come from the server; rates and percentiles are differences over the last minute. All text
// is set as text. Nothing is stored, nothing is fetched from elsewhere.
"use strict";

const POLL_MS = 1000;
const WINDOW = 60; // polls that rates and percentiles look back
const CHART = { width: 420, height: 150, left: 44, right: 8, top: 8, bottom: 20 };
const DAY_S = 86400;

const history = []; // the last WINDOW + 1 answers of /live, oldest first
let isPaused = false;
let courseMinute = -1;

const at = (id) => document.getElementById(id);
const put = (id, text) => { const place = at(id); if (place.textContent !== text) place.textContent = text; };

// --- Numbers as text ---

function count(value) {
  if (value === null || value === undefined) return "-";
  return Math.round(value).toLocaleString("en");
}

function rate(value) {
  if (value >= 100 || value === 0) return count(value);
  return value.toFixed(value < 10 ? 2 : 1);
}

function short(value) {
  if (value >= 1e6) return `${+(value / 1e6).toPrecision(3)}M`;
  if (value >= 1e3) return `${+(value / 1e3).toPrecision(3)}k`;
  return `${+value.toPrecision(3)}`;
}

function usd(value) {
  if (value === null || value === undefined) return "-";
  return `$${value.toFixed(value !== 0 && Math.abs(value) < 1 ? 4 : 2)}`;
}

function seconds(value) {
  if (value === null) return "-";
  if (value < 1) return `${Math.round(value * 1000)}\u00a0ms`;
  return `${value.toFixed(value < 10 ? 1 : 0)}\u00a0s`;
}

function span(value) {
  if (value < 120) return `${Math.round(value)} s`;
  if (value < 7200) return `${Math.round(value / 60)} min`;
  if (value < 2 * DAY_S) return `${Math.round(value / 3600)} h`;
  return `${Math.round(value / DAY_S)} days`;
}

const total = (values) => Object.values(values).reduce((sum, value) => sum + value, 0);

// --- Differences ---

// The value below which a share of the new entries lies, by linear interpolation within a bucket.
function quantile(now, before, share) {
  const counts = now.counts.map((value, i) => value - before.counts[i]);
  const wanted = share * counts.reduce((sum, value) => sum + value, 0);
  if (!(wanted > 0)) return null;
  let below = 0;
  for (let i = 0; i < counts.length; i++) {
    if (below + counts[i] >= wanted) {
      if (i === now.bounds.length) return now.bounds[i - 1];
      const low = i ? now.bounds[i - 1] : 0;
      return low + (now.bounds[i] - low) * ((wanted - below) / counts[i]);
    }
    below += counts[i];
  }
  return null;
}

function showTime(id, now, before) {
  put(id, seconds(quantile(now, before, 0.5)));
  const slow = quantile(now, before, 0.95);
  put(`${id}-95`, slow === null ? "none in the last minute" : `95 % within ${seconds(slow)}`);
}

// --- The figures ---

function showHealth(live) {
  const troubles = [];
  if (live.ledger_up === 0) troubles.push("The ledger can't be written: paid requests are refused.");
  if (live.config_current === 0) troubles.push("The configuration on disk was refused: the old one is in use.");
  for (const [name, upstream] of Object.entries(live.upstreams)) {
    const keys = upstream.keys;
    if (total(keys) > 0 && !keys.ok && !keys.cooling) troubles.push(`No key of ${name} is usable.`);
  }
  if (live.left_usd.all === 0) troubles.push("The budget is used up.");
  at("health").classList.toggle("bad", troubles.length > 0);
  put("health", troubles.length ? troubles.join(" ") : "All is well."); // read out when it changes
}

function showNow(live) {
  const first = history[0];
  const past_s = live.now_s - first.now_s;
  const now = live.totals;
  const then = first.totals;
  const tokens = (sums) => sums.input_tokens + sums.output_tokens;
  if (past_s > 0) {
    put("requests-rate", rate((now.requests - then.requests) / past_s));
    put("tokens-rate", rate((tokens(now) - tokens(then)) / past_s));
  }
  put("version", live.version || "");
  put("active", count(live.active));
  put("streams", `${count(live.streams)} streams, ${count(total(live.connections))} connections`);
  put("waiting", count(live.waiting));
  const wait = quantile(live.times.queue_wait, first.times.queue_wait, 0.95);
  put("queue-wait", wait === null ? "nobody had to wait" : `95 % within ${seconds(wait)}`);
  showTime("first-token", live.times.first_token, first.times.first_token);
  showTime("duration", live.times.duration, first.times.duration);
  const cap = live.cap_usd.all;
  put("left", live.left_usd.all === undefined ? "no cap" : usd(live.left_usd.all));
  put("cap", cap === undefined ? `${usd(now.spent_usd)} spent since the start` : `of ${usd(cap)}`);
  put("up", live.start_s ? `Up for ${span(live.now_s - live.start_s)}` : "");
  put("memory", live.resident_bytes === null ? "-" : `${count(live.resident_bytes / 1e6)} MB`);
  const busy = past_s > 0 ? Math.max(0, (live.cpu_s - first.cpu_s) / past_s) * 100 : 0;
  put("process", `${rate(busy)} % of a core, ${seconds(live.lag_s || 0)} lag`);
}

// Rows are rebuilt only when what they say has changed, so that a selection or focus lives on.
function showRows(id, rows) {
  const body = at(id);
  const said = JSON.stringify(rows);
  if (body.dataset.said === said) return;
  body.dataset.said = said;
  body.replaceChildren(...rows.map(makeRow));
}

function makeRow(cells) {
  const row = document.createElement("tr");
  cells.forEach((cell, i) => {
    const place = document.createElement(i ? "td" : "th");
    if (!i) place.scope = "row";
    if (cell.length === 2) place.className = cell[1];
    place.textContent = cell[0];
    row.append(place);
  });
  return row;
}

function showKeys(keys) {
  const kind = (state) => (state === "ok" ? "state ok" : state.startsWith("cooling") ? "state cooling" : "state");
  const rows = keys.map((key) => [
    [key.upstream], [key.tail ? `\u2026${key.tail}` : "(none)", "key"], [key.state, kind(key.state)],
    [count(key.in_flight), "n"], [count(key.requests), "n"], [count(key.failures), "n"],
  ]);
  showRows("keys", rows);
}

function showUpstreams(live) {
  const list = (values) => Object.entries(values).filter((pair) => pair[1]).map(([name, value]) => `${count(value)} ${name}`).join(", ");
  const rows = Object.entries(live.upstreams).map(([name, upstream]) => [
    [name], [list(upstream.keys) || "-", "list"], [count(upstream.tries), "n"], [count(upstream.retries), "n"],
    [list(upstream.failures) || "none", "list"], [usd(upstream.cost_usd), "n"],
    [live.left_usd[name] === undefined ? "-" : `${usd(live.left_usd[name])} of ${usd(live.cap_usd[name])}`, "n"],
  ]);
  showRows("upstreams", rows);
}

function showRefusals(live) {
  const then = history[0].totals.refused;
  const rows = Object.entries(live.totals.refused)
    .sort((a, b) => b[1] - a[1])
    .map(([reason, sum]) => [[reason], [count(sum - (then[reason] || 0)), "n"], [count(sum), "n"]]);
  showRows("refusals", rows.length ? rows : [[["none so far"], ["0", "n"], ["0", "n"]]]);
}

// --- Charts ---

function shape(name, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

// A round number that is at least as large as the value.
function ceiling(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((round) => round >= value * 0.999999);
}

// A frame with the hours of a day from start_s (local time), and functions that place a point.
function frame(id, start_s, top, label) {
  const { width, height, left, right, top: above, bottom } = CHART;
  const x = (s) => left + ((s - start_s) / DAY_S) * (width - left - right);
  const y = (value) => height - bottom - (value / top) * (height - above - bottom);
  const parts = [];
  for (const share of [0, 0.5, 1]) {
    const line_y = y(top * share);
    parts.push(shape("line", { class: "grid", x1: left, x2: width - right, y1: line_y, y2: line_y }));
    parts.push(shape("text", { x: left - 6, y: line_y + 4, "text-anchor": "end" }, label(top * share)));
  }
  for (let hour = 0; hour <= 24; hour += 6) {
    const when = new Date((start_s + hour * 3600) * 1000);
    const text = when.toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });
    const anchor = hour === 24 ? "end" : hour ? "middle" : "start";
    parts.push(shape("text", { x: x(start_s + hour * 3600), y: height - 5, "text-anchor": anchor }, text));
  }
  const chart = at(id);
  chart.setAttribute("viewBox", `0 0 ${width} ${height}`);
  return { x, y, draw: (more) => chart.replaceChildren(...parts, ...more) };
}

// Budgets begin anew at 00:00 UTC, so this chart begins there, whatever the local time is.
function drawBudget(live, points) {
  const start_s = Math.floor(live.now_s / DAY_S) * DAY_S;
  const today = points.filter((point) => point.until_s > start_s);
  const isCapped = live.left_usd.all !== undefined;
  let spent_usd = 0;
  const values = today.map((point) => {
    spent_usd += point.spent_usd;
    return { s: point.until_s, usd: isCapped ? point.left_usd : spent_usd };
  }).filter((value) => value.usd !== null);
  if (isCapped) values.push({ s: live.now_s, usd: live.left_usd.all });
  const cap = live.cap_usd.all;
  const top = cap || ceiling(Math.max(0, ...values.map((value) => value.usd)));
  const { x, y, draw } = frame("budget-chart", start_s, top, usd);
  const path = values.map(({ s, usd: value }) => `${x(s).toFixed(1)},${y(value).toFixed(1)}`).join(" L");
  const more = [];
  if (values.length) {
    const ends = [values[values.length - 1].s, values[0].s].map((s) => `${x(s).toFixed(1)},${y(0)}`).join(" L");
    more.push(shape("path", { class: "area", d: `M${path} L${ends} Z` }), shape("path", { class: "line", d: `M${path}` }));
  }
  if (cap) more.push(shape("line", { class: "cap", x1: CHART.left, x2: CHART.width - CHART.right, y1: y(cap), y2: y(cap) }));
  draw(more);
  put("budget-title", isCapped ? "Budget left today" : "Spent today");
  const resets = new Date((start_s + DAY_S) * 1000).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });
  put("budget-text", isCapped ? `${usd(live.left_usd.all)} left of ${usd(cap)}; starts anew at ${resets}.` : `${usd(spent_usd)}, without a cap.`);
}

// Bars of ten minutes over the last 24 hours; `under` is the part drawn in red.
function drawBars(id, live, points, value, under) {
  const step_s = 600;
  const end_s = Math.ceil(live.now_s / step_s) * step_s;
  const start_s = end_s - DAY_S;
  const bars = Array.from({ length: DAY_S / step_s }, () => ({ all: 0, red: 0 }));
  for (const point of points) {
    const bar = bars[Math.floor((point.until_s - 1 - start_s) / step_s)];
    if (bar) { bar.all += value(point); bar.red += under(point); }
  }
  const top = ceiling(Math.max(...bars.map((bar) => bar.all)));
  const { x, y, draw } = frame(id, start_s, top, short);
  const width = x(start_s + step_s) - x(start_s) - 0.6;
  const more = [];
  const part = (kind, i, from, to) => {
    if (to <= from) return;
    more.push(shape("rect", { class: kind, x: x(start_s + i * step_s), width, y: y(to), height: y(from) - y(to) }));
  };
  bars.forEach((bar, i) => { part("refused", i, 0, bar.red); part("bar", i, bar.red, bar.all); });
  draw(more);
  return bars.reduce((sum, bar) => ({ all: sum.all + bar.all, red: sum.red + bar.red }), { all: 0, red: 0 });
}

function drawCharts(live, course) {
  const points = course.points.map((values) => Object.fromEntries(course.fields.map((field, i) => [field, values[i]])));
  drawBudget(live, points);
  const requests = drawBars("requests-chart", live, points, (point) => point.requests, (point) => point.refused);
  put("requests-text", `${count(requests.all)} in 24 hours, by 10 minutes; ${count(requests.red)} refused or failed (red).`);
  const tokens = drawBars("tokens-chart", live, points, (point) => point.tokens, () => 0);
  put("tokens-text", `${count(tokens.all)} in 24 hours, by 10 minutes.`);
}

// --- Polling ---

async function fetchJson(path) {
  const answer = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(5000) });
  if (!answer.ok) throw new Error(String(answer.status));
  return answer.json();
}

async function poll() {
  const [live, keys] = await Promise.all([fetchJson("/live"), fetchJson("/keys")]);
  // A restart begins all sums anew.
  if (history.length && live.totals.requests < history[history.length - 1].totals.requests) history.length = 0;
  history.push(live);
  if (history.length > WINDOW + 1) history.shift();
  showHealth(live);
  showNow(live);
  showKeys(keys.keys);
  showUpstreams(live);
  showRefusals(live);
  const minute = Math.floor((live.now_s - 2) / 60); // the server may be a beat late with its point
  if (minute !== courseMinute) {
    courseMinute = minute;
    drawCharts(live, await fetchJson("/course"));
  }
}

async function loop() {
  if (!isPaused && !document.hidden) {
    try {
      await poll();
    } catch (error) {
      history.length = 0;
      at("health").classList.add("bad");
      put("health", "The gateway doesn't answer. Trying again.");
    }
  }
  setTimeout(loop, POLL_MS);
}

at("pause").addEventListener("click", () => {
  isPaused = !isPaused;
  at("pause").setAttribute("aria-pressed", String(isPaused));
});
loop();
