// The page of the server: asks with drafts, and shows every position of the answer as it stands. All text goes through textContent.
const GUESSED = 0, WRITTEN = 1, BEHIND = 3;  // the states of a position; 2 is settled
const MASK = "\u2591";
const find = (id) => document.getElementById(id);
const form = find("form"), promptBox = find("prompt"), answer = find("answer"), status = find("status"), bar = find("bar");
const go = find("go"), stop = find("stop"), replay = find("replay");
let running = null;  // an AbortController

function headers() {
  const key = form.elements.key.value;
  return {"Content-Type": "application/json", ...(key ? {Authorization: `Bearer ${key}`} : {})};
}

async function theModel() {
  const response = await fetch("/v1/models", {headers: headers()});
  const said = await response.json();
  if (!response.ok) throw new Error(said.error.message);
  return said.data[0];
}

async function introduce() {
  try {
    const model = await theModel();
    find("model").textContent = `${model.id}, ${model.dtype}, at most ${model.max_tokens} tokens`;
    for (const option of [...form.elements.preset.options]) {
      if (option.value && !model.presets.includes(option.value)) option.remove();
    }
  } catch (error) {
    say(error.message, true);
  }
}

function request(model) {
  const asked = {model: model.id, stream: true, drafts: true, replay: true};
  for (const name of ["max_tokens", "block_length", "steps", "temperature", "cfg_scale", "seed"]) {
    const value = form.elements[name].value, number = Number(value);
    if (number > Number.MAX_SAFE_INTEGER) throw new Error(`${name}: expected at most ${Number.MAX_SAFE_INTEGER}, found ${value}`);
    if (value !== "") asked[name] = number;
  }
  if (form.elements.preset.value) asked.preset = form.elements.preset.value;
  if (!model.chat) return ["/v1/completions", {...asked, prompt: promptBox.value}];
  const system = form.elements.system.value;
  const messages = [...(system ? [{role: "system", content: system}] : []), {role: "user", content: promptBox.value}];
  return ["/v1/chat/completions", {...asked, messages}];
}

// Server-sent events of a response, as objects.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ;) {
    const {value, done} = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

function show(cells) {
  while (answer.childElementCount > cells.length) answer.lastElementChild.remove();
  if (!answer.firstElementChild) answer.textContent = "";
  cells.forEach(([text, state], i) => {
    const span = answer.children[i] ?? answer.appendChild(document.createElement("span"));
    const before = span.dataset.state, shown = state === BEHIND ? "" : text || (state === GUESSED ? MASK : "");
    if (span.textContent !== shown) span.textContent = shown;
    const fresh = state !== GUESSED && state !== BEHIND && (before === undefined || before === String(GUESSED));
    span.className = "cell" + (fresh ? " new" : state === GUESSED ? " guess" : state === WRITTEN ? " written" : "");
    span.dataset.state = state;
  });
  const known = cells.filter(([, state]) => state !== BEHIND), left = known.filter(([, state]) => state === GUESSED).length;
  bar.value = known.length ? 1 - left / known.length : 1;
  return left;
}

function say(text, wrong = false) {
  status.textContent = text;
  status.classList.toggle("wrong", wrong);
}

async function generate() {
  if (running) return;
  running = new AbortController();
  go.disabled = true;
  stop.disabled = false;
  replay.hidden = true;
  answer.replaceChildren();
  bar.value = 0;
  say("Waiting for its turn ...");
  let text = "", measures = null, reason = null;
  try {
    const [address, body] = request(await theModel());
    const response = await fetch(address, {method: "POST", headers: headers(), body: JSON.stringify(body), signal: running.signal});
    if (!response.ok) throw new Error((await response.json()).error.message);
    for await (const piece of events(response)) {
      if (piece.error) throw new Error(piece.error.message);
      const choice = piece.choices[0];
      if (!choice) continue;
      text += choice.text ?? choice.delta.content ?? "";
      reason = choice.finish_reason ?? reason;
      measures = piece.llada ?? measures;
      if (choice.draft) {
        const {forward, seconds, cells} = choice.draft, left = show(cells);
        say(`Pass ${forward + 1}, ${left} ${left === 1 ? "mask" : "masks"} left, ${seconds.toFixed(1)} s`);
      }
    }
    answer.textContent = text;
    bar.value = 1;
    say(`Done in ${measures.seconds.toFixed(2)} s: ${measures.forward_passes} forward passes, ` +
        `${measures.tokens_per_forward.toFixed(2)} tokens each; ${reason === "stop" ? "complete" : "cut at its length"}.`);
    if (measures.replay) {
      replay.href = measures.replay;
      replay.hidden = false;
    }
  } catch (error) {
    if (error.name === "AbortError") say("Stopped.");
    else say(error.message, true);
  } finally {
    running = null;
    go.disabled = false;
    stop.disabled = true;
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  generate();
});
stop.addEventListener("click", () => running?.abort());
form.elements.key.addEventListener("change", introduce);
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) generate();
  if (event.key === "Escape") running?.abort();
});
introduce();
