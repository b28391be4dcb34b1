// The page of hadal's server: a conversation over /v1/chat/completions, and what the server says about itself.
"use strict";

const $ = (id) => document.getElementById(id);
const history = [];  // as the API has it
let running = null;  // the AbortController of the answer that is being written
let context = 0;     // tokens that the model can take

function element(parent, tag, properties = {}, text) {
  const made = document.createElement(tag);
  Object.assign(made, properties);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

function headers() {
  const key = $("key").value;
  return { "Content-Type": "application/json", ...(key && { Authorization: "Bearer " + key }) };
}

function complain(message) {
  $("notice").textContent = message;
  $("notice").hidden = !message;
}

// Settings -----------------------------------------------------------------------------------------------------------

const KEPT = ["system", "effort", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty",
              "max_tokens", "seed", "stop", "theme", "tools"];

function load_settings() {
  let kept = {};
  try {
    kept = JSON.parse(localStorage.getItem("hadal") ?? "{}");
    $("key").value = sessionStorage.getItem("hadal-key") ?? "";  // gone with the tab
  } catch { /* storage may be switched off */ }
  for (const id of KEPT) if (typeof kept[id] === "string") $(id).value = kept[id];
  $("page_tools").checked = kept.page_tools === true;
  document.documentElement.dataset.theme = $("theme").value;
}

function save_settings() {
  document.documentElement.dataset.theme = $("theme").value;
  const kept = Object.fromEntries(KEPT.map((id) => [id, $(id).value]));
  kept.page_tools = $("page_tools").checked;
  try {
    localStorage.setItem("hadal", JSON.stringify(kept));
    sessionStorage.setItem("hadal-key", $("key").value);
  } catch { /* the same */ }
}

// What the settings make of a request; what stands in an empty field is left to the server.
function options() {
  const body = { reasoning_effort: $("effort").value };
  for (const id of ["temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "max_tokens", "seed"])
    if ($(id).value !== "") body[id] = Number($(id).value);
  if ($("stop").value) body.stop = [$("stop").value];
  let tools = [];
  if ($("tools").value.trim()) {
    try {
      tools = JSON.parse($("tools").value);
    } catch (error) {
      throw new Error("Settings, more tools: " + error.message);
    }
    if (!Array.isArray(tools)) throw new Error("Settings, more tools: not an array");
  }
  if ($("page_tools").checked) tools = [...Object.values(PAGE_TOOLS).map((tool) => tool.declaration), ...tools];
  if (tools.length) body.tools = tools;
  return body;
}

// Tools that the page runs itself ------------------------------------------------------------------------------------

function declare(name, description, parameter, meaning) {
  const properties = { [parameter]: { type: "string", description: meaning } };
  return { type: "function", function: { name, description, parameters: { type: "object", properties, required: [parameter] } } };
}

// Numbers, + - * / % ^ and brackets; nothing is evaluated as a program.
function calculate(text) {
  const tokens = text.match(/\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+|[-+*/%^()]/g) ?? [];
  if (tokens.join("") !== text.replace(/\s/g, "")) throw new Error("not an expression");
  let at = 0;
  const expect = (token) => {
    if (tokens[at++] !== token) throw new Error(`expected ${token}`);
  };
  const atom = () => {
    const token = tokens[at++];
    if (token === "(") {
      const value = sum();
      expect(")");
      return value;
    }
    if (token === "-") return -power();
    if (token === undefined || !/^[\d.]/.test(token)) throw new Error("expected a number");
    return Number(token);
  };
  const power = () => {
    const base = atom();
    if (tokens[at] !== "^") return base;
    at++;
    return base ** power();
  };
  const product = () => {
    let value = power();
    while (["*", "/", "%"].includes(tokens[at])) {
      const operator = tokens[at++], right = power();
      value = operator === "*" ? value * right : operator === "/" ? value / right : value % right;
    }
    return value;
  };
  const sum = () => {
    let value = product();
    while (tokens[at] === "+" || tokens[at] === "-") value = tokens[at++] === "+" ? value + product() : value - product();
    return value;
  };
  const value = sum();
  if (at < tokens.length) throw new Error(`${tokens[at]} was not expected`);
  return String(value);
}

const PAGE_TOOLS = {
  calculator: {
    declaration: declare("calculator", "Computes an expression.", "expression", "What to compute"),
    run: ({ expression }) => calculate(String(expression)),
  },
  clock: {
    declaration: declare("clock", "Tells the time in a city.", "city", "The city"),
    run: ({ city }) => `${new Date().toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" })} on this computer, wherever ${city} is`,
  },
};

// Text of an answer, as elements: code, headings, lists, emphasis. Nothing of it is ever taken for HTML. --------------

function inline(parent, text) {
  for (const part of text.split(/(`[^`\n]+`|\*\*[^*\n]+\*\*)/)) {
    if (part.length > 2 && part.startsWith("`") && part.endsWith("`")) element(parent, "code", {}, part.slice(1, -1));
    else if (part.length > 4 && part.startsWith("**") && part.endsWith("**")) element(parent, "strong", {}, part.slice(2, -2));
    else if (part) parent.append(part);
  }
}

function copy_button(parent, text) {
  const button = element(parent, "button", { type: "button", className: "small" }, "Copy");
  button.onclick = async () => {
    try {
      await navigator.clipboard.writeText(text());
      button.textContent = "Copied";
    } catch {
      button.textContent = "Cannot copy";
    }
    setTimeout(() => (button.textContent = "Copy"), 1500);
  };
}

function render(parent, text) {
  parent.replaceChildren();
  text.split(/^(```[^\n]*\n[\s\S]*?(?:^```[ \t]*$|$(?![\s\S])))/m).forEach((block) => {
    if (block.startsWith("```")) {
      const code = block.replace(/^```[^\n]*\n/, "").replace(/\n?^```[ \t]*$/m, "");
      const pre = element(parent, "pre");
      element(pre, "code", {}, code);
      copy_button(pre, () => code);
      return;
    }
    for (const paragraph of block.split(/\n{2,}/)) {
      if (!paragraph.trim()) continue;
      const lines = paragraph.split("\n").filter((line) => line.trim());
      const heading = /^#{1,4} +(.*)/.exec(lines[0]);
      if (heading && lines.length === 1) {
        inline(element(parent, "h3"), heading[1]);
      } else if (lines.every((line) => /^\s*[-*] +/.test(line)) || lines.every((line) => /^\s*\d+[.)] +/.test(line))) {
        const list = element(parent, /^\s*\d/.test(lines[0]) ? "ol" : "ul");
        for (const line of lines) inline(element(list, "li"), line.replace(/^\s*(?:[-*]|\d+[.)]) +/, ""));
      } else {
        inline(element(parent, "p"), paragraph.replace(/^\n+|\n+$/g, ""));
      }
    }
  });
}

// The conversation ---------------------------------------------------------------------------------------------------

// The JSON objects of a stream of events, one after another.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data: ") && line !== "data: [DONE]") yield JSON.parse(line.slice(6));
  }
}

function at_end() {
  const log = $("log");
  return log.scrollHeight - log.scrollTop - log.clientHeight < 80;
}
function to_end() {
  $("log").scrollTop = $("log").scrollHeight;
}

function show_user(text) {
  element($("log"), "div", { className: "turn user" }, text);
  to_end();
}

// One turn of the assistant as it grows: what is shown, and the message that goes into the history.
class Turn {
  constructor() {
    this.box = element($("log"), "div", { className: "turn assistant working" });
    this.box.setAttribute("aria-busy", "true");
    this.message = { role: "assistant", content: "" };
    this.calls = [];
    this.began = performance.now();
    this.first = 0;
    this.pieces = 0;
  }

  take(delta) {
    const follows = at_end();
    if (delta.reasoning_content) this.think(delta.reasoning_content);
    if (delta.content) this.say(delta.content);
    for (const part of delta.tool_calls ?? []) this.call(part);
    if (delta.reasoning_content || delta.content || delta.tool_calls) {
      this.first ||= performance.now();
      ++this.pieces;
      const seconds = (performance.now() - this.first) / 1000;
      if (this.pieces > 1) $("speed").textContent = `${((this.pieces - 1) / Math.max(seconds, 1e-3)).toFixed(1)} tokens/s, first after ${((this.first - this.began) / 1000).toFixed(2)} s`;
    }
    if (follows) to_end();
  }

  think(text) {
    if (!this.thinking) {
      this.details = element(this.box, "details", { className: "thinking", open: true });
      this.summary = element(this.details, "summary", {}, "Thinking");
      this.thinking = element(this.details, "div");
    }
    this.thinking.append(text);
    this.message.reasoning_content = (this.message.reasoning_content ?? "") + text;
  }

  thought() {
    if (!this.details || this.summary.textContent !== "Thinking") return;
    this.summary.textContent = `Thought for ${((performance.now() - (this.first || this.began)) / 1000).toFixed(1)} s`;
    this.details.open = false;
  }

  say(text) {
    this.thought();
    this.answer ??= element(this.box, "div", { className: "answer" });
    this.message.content += text;
    if (this.drawing) return;
    this.drawing = true;  // once a frame is enough
    requestAnimationFrame(() => {
      const follows = at_end();
      this.drawing = false;
      render(this.answer, this.message.content);
      if (follows) to_end();
    });
  }

  call(part) {
    this.thought();
    let call = this.calls[part.index];
    if (!call) {
      const box = element(this.box, "div", { className: "call" });
      element(box, "b", {}, part.function.name);
      call = this.calls[part.index] = { id: part.id, type: "function", function: { name: part.function.name, arguments: "" }, box, shown: element(box, "div", { className: "arguments" }) };
    }
    call.function.arguments += part.function.arguments ?? "";
    call.shown.textContent = call.function.arguments;
  }

  end(finish) {
    this.box.classList.remove("working");
    this.box.removeAttribute("aria-busy");
    this.thought();
    if (this.answer) render(this.answer, this.message.content);
    if (finish === "length") {
      element(this.box, "p", { className: "dim" }, "Cut off: as many tokens as the settings allow.");
      if (this.calls.length) this.calls.pop().box.remove();  // the last may be half a call
    }
    for (const call of this.calls) {
      try {
        call.shown.textContent = Object.entries(JSON.parse(call.function.arguments)).map(([key, value]) => `${key}: ${typeof value === "string" ? value : JSON.stringify(value)}`).join("\n");
      } catch { /* as it came */ }
    }
    if (this.calls.length) this.message.tool_calls = this.calls.map(({ id, type, function: f }) => ({ id, type, function: f }));
    if (this.message.content) {
      const tools = element(this.box, "div", { className: "tools" });
      copy_button(tools, () => this.message.content);
      const again = element(tools, "button", { type: "button", className: "small" }, "Again");
      again.title = "Throw this answer away and ask for another";
      again.onclick = () => {
        const index = history.indexOf(this.message);
        if (running || index < 0) return;
        history.length = index;
        while (this.box.nextSibling) this.box.nextSibling.remove();
        this.box.remove();
        answer();
      };
    }
  }
}

function show_usage(usage, turn) {
  const seconds = (performance.now() - (turn.first || turn.began)) / 1000;
  const speed = usage.completion_tokens / Math.max(seconds, 1e-3);
  const hit = usage.prompt_cache_hit_tokens, all = usage.prompt_tokens;
  $("speed").textContent = `${usage.completion_tokens.toLocaleString()} tokens at ${speed.toFixed(1)} tokens/s, first after ${(((turn.first || performance.now()) - turn.began) / 1000).toFixed(2)} s`;
  $("cache").textContent = `${all.toLocaleString()} read, ${hit.toLocaleString()} from the cache (${Math.round((100 * hit) / Math.max(all, 1))} %)`;
  $("context").firstElementChild.textContent = `context ${usage.total_tokens.toLocaleString()}${context ? " of " + context.toLocaleString() : ""}`;
  $("used").hidden = !context;
  $("used").max = context || 1;
  $("used").high = 0.9 * context;
  $("used").value = usage.total_tokens;
}

// The result of a call: of the page itself, or of whoever sits in front of it.
function result_of(call) {
  const tool = $("page_tools").checked && PAGE_TOOLS[call.function.name];
  if (tool) {
    try {
      return Promise.resolve(String(tool.run(JSON.parse(call.function.arguments))));
    } catch (error) {
      return Promise.resolve("error: " + error.message);
    }
  }
  return new Promise((given) => {
    const form = element(call.box, "form");
    const label = element(form, "label", {}, `Result of ${call.function.name}`);
    const field = element(label, "textarea", { rows: 2 });
    element(form, "button", { className: "main" }, "Give result");
    form.onsubmit = (event) => {
      event.preventDefault();
      form.remove();
      given(field.value || "(no output)");
    };
    field.focus();
    to_end();
  });
}

// Asks for the next turn of the assistant, and for the one after its calls.
async function answer() {
  complain("");
  const turn = new Turn();
  to_end();
  running = new AbortController();
  $("send").textContent = "Stop";
  let finish = "";
  try {
    const system = $("system").value.trim();
    const response = await fetch("/v1/chat/completions", {
      method: "POST", headers: headers(), signal: running.signal,
      body: JSON.stringify({
        model: $("model").dataset.name ?? "hadal", stream: true, stream_options: { include_usage: true },
        messages: [...(system ? [{ role: "system", content: system }] : []), ...history], ...options() }) });
    if (!response.ok) {
      const error = (await response.json().catch(() => ({}))).error;
      throw new Error(response.status === 401 ? "This server wants an API key: see Settings." : (error?.message ?? `the server said ${response.status}`));
    }
    for await (const chunk of events(response.body)) {
      if (chunk.error) throw new Error(chunk.error.message);
      if (chunk.usage) show_usage(chunk.usage, turn);
      const choice = chunk.choices[0];
      if (choice?.delta) turn.take(choice.delta);
      finish = choice?.finish_reason ?? finish;
    }
    if (!finish) throw new Error("the answer broke off: has the server gone?");
  } catch (error) {
    finish = "length";
    if (error.name !== "AbortError") {
      complain(error.message);
      finish = "";
    }
  }
  turn.end(finish === "length" && running.signal.aborted ? "aborted" : finish);
  if (running.signal.aborted) turn.calls.splice(0).forEach((call) => call.box.remove());
  running = null;
  $("send").textContent = "Send";
  if (turn.message.content || turn.calls.length) {
    if (!turn.calls.length) delete turn.message.tool_calls;
    history.push(turn.message);
  } else if (!turn.thinking) {
    turn.box.remove();
  }
  if (finish === "tool_calls") {
    for (const call of turn.calls) {
      const result = await result_of(call);
      element(call.box, "div", { className: "result" }, result);
      history.push({ role: "tool", tool_call_id: call.id, content: result });
    }
    return answer();
  }
  refresh();
}

function grow() {
  const text = $("text");
  text.style.height = "auto";
  text.style.height = text.scrollHeight + 2 + "px";
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) return running.abort();
  const text = $("text").value.trim();
  if (!text) return;
  $("text").value = "";
  grow();
  history.push({ role: "user", content: text });
  show_user(text);
  answer();
});
$("text").addEventListener("input", grow);
$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    if (!running) $("form").requestSubmit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});

// The server's state -------------------------------------------------------------------------------------------------

const samples = [];  // {time, written, read}, counts since its start

function bytes(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  for (; n >= 1024 && unit < units.length - 1; ++unit) n /= 1024;
  return `${n >= 100 || unit === 0 ? Math.round(n) : n.toFixed(1)} ${units[unit]}`;
}
function duration(seconds) {
  const parts = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]].filter(([size]) => seconds >= size);
  return parts.slice(0, 2).map(([size, name], i) => `${Math.floor((i ? seconds % parts[0][0] : seconds) / size)} ${name}`).join(" ") || "0 s";
}

function rates() {
  const made = [];
  for (let i = 1; i < samples.length; ++i) {
    const seconds = (samples[i].time - samples[i - 1].time) / 1000;
    made.push({ time: samples[i].time, written: Math.max(0, samples[i].written - samples[i - 1].written) / seconds,
                read: Math.max(0, samples[i].read - samples[i - 1].read) / seconds });
  }
  return made;
}

function draw_graph() {
  const canvas = $("graph"), pen = canvas.getContext("2d"), made = rates(), now = performance.now();
  const style = getComputedStyle(document.documentElement);
  pen.clearRect(0, 0, canvas.width, canvas.height);
  const most = Math.max(10, ...made.map((r) => Math.max(r.written, r.read)));
  for (const [name, colour] of [["read", "--dim"], ["written", "--accent"]]) {
    pen.strokeStyle = style.getPropertyValue(colour);
    pen.lineWidth = 2;
    pen.beginPath();
    made.forEach((rate, i) => {
      const x = canvas.width * (1 - (now - rate.time) / 120000), y = canvas.height - 2 - (canvas.height - 20) * (rate[name] / most);
      if (i) pen.lineTo(x, y);
      else pen.moveTo(x, y);
    });
    pen.stroke();
  }
  pen.fillStyle = style.getPropertyValue("--dim");
  pen.font = "13px system-ui";
  pen.fillText(`${Math.round(most).toLocaleString()} tokens/s`, 4, 14);
  const last = made.at(-1);
  if (last) canvas.setAttribute("aria-label", `${last.written.toFixed(0)} tokens per second written, ${last.read.toFixed(0)} read`);
}

function show_state(state) {
  const cards = $("cards");
  cards.replaceChildren();
  const card = (title, value, more = "", part) => {
    const box = element(cards, "div", { className: "card" });
    element(box, "h3", {}, title);
    element(box, "p", {}, value);
    if (part !== undefined) element(box, "meter", { min: 0, max: 1, value: part, ariaLabel: title });
    if (more) element(box, "small", {}, more);
  };
  const rate = rates().at(-1) ?? { written: 0, read: 0 };
  card("Answers being written", String(state.running), `${state.waiting} waiting`);
  card("Tokens per second", rate.written.toFixed(1), `${rate.read.toFixed(0)} read`);
  card("Read from the cache", state.prefix_queries ? `${Math.round((100 * state.prefix_hits) / state.prefix_queries)} %` : "–",
       `${state.prefix_hits.toLocaleString()} of ${state.prefix_queries.toLocaleString()} tokens`);
  card("States and snapshots", bytes(state.state_bytes), `of ${bytes(state.state_budget)}, ${state.snapshots} snapshots`, state.state_bytes / Math.max(1, state.state_budget));
  if (state.disk) card("Cache on disk", bytes(state.disk.bytes), `of ${bytes(state.disk.budget)}, ${state.disk.files} files`, state.disk.bytes / Math.max(1, state.disk.budget));
  card("Turns kept", String(state.turns.count), `${bytes(state.turns.bytes)} of ${bytes(state.turns.budget)}`, state.turns.bytes / Math.max(1, state.turns.budget));
  card("Memory", bytes(state.memory_bytes), "of the whole server");
  card("Tokens written", state.generated_tokens.toLocaleString(), `${state.prompt_tokens.toLocaleString()} in prompts`);
  card("Context", state.context.toLocaleString(), "tokens at most");
  card("Up for", duration(state.uptime_seconds), state.draining ? "shutting down" : `${state.preemptions} preemptions`);
}

async function refresh() {
  const model = $("model");
  try {
    const response = await fetch("/state", { headers: headers() });
    if (!response.ok) return void (model.textContent = response.status === 401 ? "wants an API key: see Settings" : `the server said ${response.status}`);
    const state = await response.json();
    context = state.context;
    model.textContent = model.dataset.name = state.model;
    model.title = state.description;
    const last = samples.at(-1);
    if (!last || performance.now() - last.time > 400)
      samples.push({ time: performance.now(), written: state.generated_tokens, read: state.prompt_tokens });
    while (samples.length && performance.now() - samples[0].time > 125000) samples.shift();
    if ($("server").hidden) return;
    show_state(state);
    draw_graph();
  } catch {
    model.textContent = "no server";
  }
}

function show_view(server) {
  $("server").hidden = !server;
  $("chat").hidden = server;
  $("show-server").setAttribute("aria-pressed", String(server));
  $("show-chat").setAttribute("aria-pressed", String(!server));
  if (server) refresh();
}
$("show-server").onclick = () => show_view(true);
$("show-chat").onclick = () => show_view(false);
$("show-settings").onclick = () => {
  $("settings").hidden = !$("settings").hidden;
  $("show-settings").setAttribute("aria-expanded", String(!$("settings").hidden));
};
$("clear").onclick = () => {
  running?.abort();
  history.length = 0;
  $("log").replaceChildren();
  for (const id of ["speed", "cache"]) $(id).textContent = "";
  $("context").firstElementChild.textContent = "";
  $("used").hidden = true;
  complain("");
  show_view(false);
  $("text").focus();
};
$("settings").addEventListener("submit", (event) => event.preventDefault());
$("settings").addEventListener("change", () => {
  save_settings();
  refresh();
});
for (const [name, path] of [["OPENAI_BASE_URL", "/v1"], ["ANTHROPIC_BASE_URL", ""]]) {
  element($("addresses"), "dt", {}, name);
  element(element($("addresses"), "dd"), "code", {}, location.origin + path);
}
load_settings();
refresh();
setInterval(() => { if (!document.hidden) refresh(); }, 2000);
