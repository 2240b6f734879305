// The public page's playground, live status and small comforts. No third party, no storage: what is
// typed here lives in this module's variables and in the page, and is gone with it. Whatever comes
// over the network is put into the page as text; the policy of Trusted Types enforces that.

const API = new URL("v1", document.baseURI).href;
const STATUS_EVERY_MS = 10_000;
/** Who reads further up than this isn't pulled down by new text. */
const NEAR_THE_END_PX = 80;

const at = (id) => document.getElementById(id);
let words = JSON.parse(at("words").textContent);

/** A text of the page's language with its `{name}`s filled in. */
function say(name, facts = {}) {
  return words[name].replace(/\{(\w+)\}/g, (_, fact) => facts[fact]);
}

const number = (value) => value.toLocaleString(document.documentElement.lang);

/** A wait in seconds as people say it, rounded up. */
function wait(seconds) {
  if (seconds <= 90) return say("seconds", { n: Math.ceil(seconds) });
  if (seconds <= 5_400) return say("minutes", { n: Math.ceil(seconds / 60) });
  return say("hours", { n: Math.ceil(seconds / 3_600) });
}

/** An element with these children; strings become text, never HTML. */
function element(name, attributes, ...children) {
  const made = Object.assign(document.createElement(name), attributes);
  made.append(...children);
  return made;
}

// --- Streams ------------------------------------------------------------------------------------

/**
 * Server-sent events out of bytes, however they are cut.
 * Source: WHATWG HTML, section 9.2.6. Only `data` counts here; an unfinished event is dropped.
 */
export class EventReader {
  #decoder = new TextDecoder();
  #rest = "";
  #data = [];

  /** The data of each event that ends within these bytes. */
  push(bytes) {
    this.#rest += this.#decoder.decode(bytes, { stream: true });
    const events = [];
    // A CR at the very end may be half of a CR LF.
    for (let end; (end = /\r\n|\n|\r(?!$)/.exec(this.#rest)); ) {
      const line = this.#rest.slice(0, end.index);
      this.#rest = this.#rest.slice(end.index + end[0].length);
      if (line === "") {
        if (this.#data.length) events.push(this.#data.join("\n"));
        this.#data = [];
      } else if (/^data(:|$)/.test(line)) {
        this.#data.push(line.slice(5).replace(/^ /, ""));
      }
    }
    return events;
  }
}

/** What went wrong, in words for a person. */
class Failure extends Error {
  /** `error` is OpenAI's object, `retryAfter` the header's text or null. */
  constructor(error, retryAfter) {
    const known = words.errors[error?.code];
    super(known ?? error?.message ?? words.errors.upstream_unavailable);
    this.detail = known ? error.message : "";
    this.wait = retryAfter ? say("again", { wait: wait(Number(retryAfter)) }) : "";
  }

  /** What it is, and when to come back. */
  get sentences() {
    return [this.message, this.wait].filter(Boolean).join(words.gap);
  }
}

/** POST to the API; the answer, if it is one. Throws Failure, or an AbortError. */
async function post(body, headers, signal) {
  const token = at("token").value.trim();
  if (token) headers = { ...headers, authorization: `Bearer ${token}` };
  const request = {
    method: "POST",
    headers: { "content-type": "application/json", ...headers },
    body: JSON.stringify(body),
    credentials: "omit",
    cache: "no-store",
    signal,
  };
  const response = await fetch(`${API}/chat/completions`, request);
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({}));
  throw new Failure(error, response.headers.get("retry-after"));
}

/** Calls `on` with each chunk of a streamed completion. Returns whether the stream ended well. */
async function relay(response, on) {
  const events = new EventReader();
  const reader = response.body.getReader();
  let ended = false;
  for (;;) {
    const { done, value } = await reader.read().catch((error) => {
      if (error.name === "AbortError") throw error;
      return { done: true };  // the connection broke
    });
    if (done) return ended;
    for (const data of events.push(value)) {
      if (data === "[DONE]") return true;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Failure(chunk.error, null);
      ended ||= Boolean(chunk.choices?.[0]?.finish_reason);
      on(chunk);
    }
  }
}

// --- The playground -----------------------------------------------------------------------------

/** The conversation so far, as it is sent; here and nowhere else. */
let messages = [];
/** Of the answer that is under way. */
let underWay = null;

/** Put a message at the log's end, and keep the end in sight for who is there. */
function show(kind, who, ...children) {
  const log = at("log");
  const message = element("div", { className: kind }, element("b", {}, who), ...children);
  log.append(message);
  log.scrollTop = log.scrollHeight;
  return message;
}

function state(...parts) {
  at("state").textContent = parts.filter(Boolean).join(" · ");
}

/** Screen readers read an answer at its end, not word by word. */
function busy(isBusy) {
  at("send").hidden = isBusy;
  at("stop").hidden = !isBusy;
  at("log").setAttribute("aria-busy", String(isBusy));
}

/** One answer as it comes: its text in the page, its counts for the line below. */
class Answer {
  text = "";
  #node = document.createTextNode("");
  #place;
  #pieces = 0;
  #usage = null;
  #startMs = performance.now();
  #first = "";
  end = "";

  constructor(model) {
    this.#place = show("answer", model, this.#node);
  }

  /** Nothing came of it. */
  discard() {
    this.#place.remove();
  }

  add(chunk) {
    this.#usage = chunk.usage ?? this.#usage;
    const choice = chunk.choices?.[0];
    this.end = choice?.finish_reason ?? this.end;
    const piece = choice?.delta?.content;
    if (!piece) return;
    if (!this.#pieces++) {
      const seconds = ((performance.now() - this.#startMs) / 1_000).toFixed(2);
      this.#first = say("first", { seconds });
    }
    const log = at("log");
    const follows = log.scrollHeight - log.scrollTop - log.clientHeight < NEAR_THE_END_PX;
    this.text += piece;
    this.#node.appendData(piece);
    if (follows) log.scrollTop = log.scrollHeight;
    state(say("answering"), say("pieces", { count: this.#pieces }));
  }

  /** What it took, as far as that is known. */
  counts() {
    const { prompt_tokens: prompt, completion_tokens: answer } = this.#usage ?? {};
    const tokens = this.#usage
      ? say("tokens", { prompt: number(prompt), answer: number(answer) })
      : this.#pieces && say("pieces", { count: this.#pieces });
    return [tokens, this.#first];
  }
}

/** The line below, once an answer is over. */
function sumUp(answer, how, headers) {
  const left = headers?.get("x-ratelimit-remaining-requests");
  const isLocal = headers?.get("x-freeapi-served-by") === "local";
  state(
    how,
    ...answer.counts(),
    isLocal && say("local"),
    left && say("left", { count: number(Number(left)) }),
  );
}

/** Nothing has come of a question: it goes back to where it was typed. */
function takeBack(question) {
  messages.pop();
  if (!at("message").value) at("message").value = question;
}

const HOW_IT_ENDED = { length: "length", content_filter: "filtered" };

async function ask(question) {
  const control = new AbortController();
  underWay = control;
  messages.push({ role: "user", content: question });
  show("you", say("you"), question);
  const model = at("model").value.trim();
  const answer = new Answer(model);
  busy(true);
  state(say("answering"));
  let response = null;
  try {
    const body = { model, messages, stream: true, stream_options: { include_usage: true } };
    response = await post(body, {}, control.signal);
    const isWhole = await relay(response, (chunk) => answer.add(chunk));
    const how = HOW_IT_ENDED[answer.end];
    sumUp(answer, isWhole ? how && say(how) : say("cut"), response.headers);
  } catch (error) {
    if (control.signal.aborted) sumUp(answer, say("stopped"), response?.headers);
    else complain(error, answer);
  }
  if (underWay !== control) return;  // a new conversation has begun meanwhile
  if (answer.text) {
    messages.push({ role: "assistant", content: answer.text });
  } else {
    answer.discard();
    takeBack(question);
  }
  underWay = null;
  busy(false);
  refresh();
}

function complain(error, answer) {
  const isOurs = error instanceof Failure;
  const text = isOurs ? error.sentences : say("unreachable");
  const detail = isOurs && error.detail ? [element("small", {}, error.detail)] : [];
  show("bad", say("error"), element("strong", {}, text), ...detail);
  state(...answer.counts());
}

function send() {
  const message = at("message");
  if (underWay || !message.value.trim()) return;
  const question = message.value;
  message.value = "";
  ask(question);
}

function stop() {
  underWay?.abort();
  at("message").focus();
}

function clear() {
  underWay?.abort();
  underWay = null;
  messages = [];
  at("log").replaceChildren();
  busy(false);
  state(say("cleared"));
  at("message").focus();
}

function setUpChat() {
  at("chat").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  at("message").addEventListener("keydown", (event) => {
    // Enter also ends the composition of Chinese characters: that one isn't for us.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
  at("stop").addEventListener("click", stop);
  at("clear").addEventListener("click", clear);
  at("model").addEventListener("change", refresh);
  at("dry").addEventListener("click", rehearse);
}

/** Show the request that a question would become, which the instance tells without sending it. */
async function rehearse() {
  const body = { model: at("model").value, messages: [{ role: "user", content: say("hello") }] };
  let text;
  try {
    const shown = await (await post(body, { "x-freeapi-dry-run": "1" })).json();
    const headers = shown.headers.map(([name, value]) => `${name}: ${value}`).join("\n");
    text = `${shown.method} ${shown.url}\n${headers}\n\n${shown.body}`;
  } catch (error) {
    text = error instanceof Failure ? error.sentences : say("unreachable");
  }
  at("shown").textContent = text;
  at("shown").hidden = false;
}

// --- The status -----------------------------------------------------------------------------------

let timer = 0;
/** The last one that came, to be told again in another language. */
let latest = null;

/** Ask for the status now, and again while somebody looks. */
async function refresh() {
  clearTimeout(timer);
  timer = setTimeout(() => document.hidden || refresh(), STATUS_EVERY_MS);
  try {
    const response = await fetch("status", { credentials: "omit", cache: "no-store" });
    latest = await response.json();
    tell(latest);
  } catch {
    service("away");
  }
}

function service(is) {
  const place = at("now-service");
  place.dataset.is = is;
  place.textContent = say(is);
}

function tell(status) {
  if (status.status !== "ready") service("starting");
  else if (status.upstream === "down") service("down");
  else service(status.upstream === "busy" || status.waiting ? "busy" : "ready");
  at("now-capacity").textContent = capacity(status.models ?? []);
  at("now-waiting").textContent = waiting(status);
  at("now-budget").replaceChildren(...budget(status.budget));
}

/** What is left of the chosen model's limits. */
function capacity(models) {
  const chosen = at("model").value;
  const row = models.find(({ name }) => name === chosen) ?? models.find(({ name }) => name === "*");
  if (!row) return "–";
  const { requests_left: requests, tokens_left: tokens } = row;
  if (requests === null && tokens === null) return say("plenty");
  const facts = {
    model: chosen,
    requests: number(requests ?? 0),
    tokens: number(tokens ?? 0),
  };
  if (tokens === null) return say("capacity_requests", facts);
  return say(requests === null ? "capacity_tokens" : "capacity", facts);
}

function waiting({ waiting: count, wait_s: seconds }) {
  if (!count) return say("nobody");
  const facts = { count: number(count), wait: wait(seconds ?? 0) };
  return say(seconds ? "waiting" : "waiting_only", facts);
}

function budget(left) {
  if (words.isFree) return [say("free")];
  if (!left || left.left_today_usd === null) return [say("uncapped")];
  const form = { style: "currency", currency: "USD", currencyDisplay: "narrowSymbol" };
  const amount = left.left_today_usd.toLocaleString(document.documentElement.lang, form);
  const date = { weekday: "short", hour: "2-digit", minute: "2-digit" };
  const time = new Date(left.resets_at).toLocaleString(document.documentElement.lang, date);
  return [amount, element("small", {}, say("resets", { time }))];
}

// --- Comforts -------------------------------------------------------------------------------------

async function copy(button) {
  const source = at(button.dataset.copy);
  try {
    await navigator.clipboard.writeText(source.textContent);
  } catch {  // without TLS there is no clipboard: select it, for the old way or the keyboard
    getSelection().selectAllChildren(source);
    if (!document.execCommand("copy")) return;
  }
  const label = button.textContent;
  button.textContent = say("copied");
  setTimeout(() => (button.textContent = label), 1_500);
}

/** Samples one below the other become tabs. Source: WAI-ARIA Authoring Practices, "Tabs". */
function makeTabs(box) {
  const panels = [...box.querySelectorAll(".sample")];
  const list = element("div", { role: "tablist" });
  list.setAttribute("aria-labelledby", box.dataset.title);
  const tabs = panels.map((panel) => {
    const title = panel.querySelector("h3").textContent;
    const tab = element("button", { type: "button", role: "tab", id: `${panel.id}-tab` }, title);
    tab.setAttribute("aria-controls", panel.id);
    panel.setAttribute("role", "tabpanel");
    panel.setAttribute("aria-labelledby", tab.id);
    tab.addEventListener("click", () => choose(tab));
    return tab;
  });
  const choose = (chosen) =>
    tabs.forEach((tab, place) => {
      tab.ariaSelected = String(tab === chosen);
      tab.tabIndex = tab === chosen ? 0 : -1;
      panels[place].hidden = tab !== chosen;
    });
  list.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = tabs[(tabs.indexOf(document.activeElement) + step + tabs.length) % tabs.length];
    choose(next);
    next.focus();
  });
  list.append(...tabs);
  box.prepend(list);
  box.classList.add("tabbed");
  choose(tabs[0]);
}

/** The page in the other language, without losing the conversation that is in this one. */
function speak(event) {
  event.preventDefault();
  const other = new XMLHttpRequest();  // it alone parses HTML without a script's touching it
  other.responseType = "document";
  other.open("GET", event.currentTarget.href);
  other.onload = () => {
    const page = other.response;
    const theirs = page.querySelectorAll("[data-t]");
    document.querySelectorAll("[data-t]").forEach((mine, place) => {
      mine.replaceChildren(...theirs[place].childNodes);
    });
    const labels = page.querySelectorAll("[data-t-label]");
    document.querySelectorAll("[data-t-label]").forEach((mine, place) => {
      mine.ariaLabel = labels[place].ariaLabel;
    });
    const link = page.getElementById("language");
    for (const name of ["href", "hreflang", "lang", "aria-label"]) {
      at("language").setAttribute(name, link.getAttribute(name));
    }
    document.documentElement.lang = page.documentElement.lang;
    words = JSON.parse(page.getElementById("words").textContent);
    history.replaceState(null, "", other.responseURL);
    showAddress();
    if (latest) tell(latest);
    refresh();
  };
  other.onerror = () => location.assign(event.target.href);
  other.send();
}

function showAddress() {
  document.querySelectorAll("[data-base]").forEach((place) => (place.textContent = API));
}

document.querySelectorAll("[data-js]").forEach((part) => (part.hidden = false));
document.querySelectorAll(".samples").forEach(makeTabs);
document.querySelectorAll("[data-copy]").forEach((button) => {
  button.addEventListener("click", () => copy(button));
});
at("language").addEventListener("click", speak);
document.addEventListener("visibilitychange", () => document.hidden || refresh());
showAddress();
setUpChat();
refresh();
