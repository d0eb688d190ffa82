(() => {
const SHORTEST_PLAY = 8;  // seconds that the first choice of speed should take, at most
// From early to late: lightness rises all the way, blue to yellow, so that it is told apart without red and green.
const RAMP = ["#2b3f86", "#35699b", "#459a99", "#93c47d", "#f5e663"];

const $ = (id) => document.getElementById(id);
const make = (tag, name, text) => {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text !== undefined) element.textContent = text;
  return element;
};
const draw = (tag, attributes) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
};
const number = (value, digits) => value.toLocaleString("en", {minimumFractionDigits: digits, maximumFractionDigits: digits});
const plural = (count, what) => `${number(count, 0)} ${what}${count === 1 ? "" : what.endsWith("ss") ? "es" : "s"}`;

// ---- colours

const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
function ramp(share) {
  const place = Math.min(Math.max(share, 0), 1) * (RAMP.length - 1), low = Math.min(Math.floor(place), RAMP.length - 2);
  const [a, b] = [rgb(RAMP[low]), rgb(RAMP[low + 1])];
  return a.map((from, i) => Math.round(from + (b[i] - from) * (place - low)));
}
const css = (colour) => `rgb(${colour.join(" ")})`;
function inkOn(colour) {
  const linear = colour.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  const luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  return 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 ? "#ffffff" : "#000000";
}

// ---- layout

const letters = (text) => [...text].length;
const CONTINUES = /[\p{L}\p{M}\p{N}_'\u2019]$/u, GOES_ON = /^[\p{L}\p{M}\p{N}_'\u2019]/u;
const BREAKS_ANYWHERE = /[\p{sc=Han}\p{sc=Hiragana}\p{sc=Katakana}\p{sc=Thai}\p{sc=Lao}\p{sc=Khmer}\p{sc=Myanmar}]/u;
const TALLEST_RASTER = 512;  // pixels, as long as every position has one
const LONGEST_PREVIEW = 200;  // characters of a prompt
const LONGEST_WORD = 12;  // cells that are kept on a line

// ---- one run on the page

class Pane {
  constructor(run, number) {
    this.run = run;
    const section = $("run").content.cloneNode(true).querySelector("section");
    this.at = (selector) => section.querySelector(selector);
    this.section = section;
    section.dataset.run = number;
    this.at("h2").textContent = run.name;
    this.at("h2").hidden = !run.name;
    this.at(".method").textContent = run.method;
    this.figures();
    this.chooser();
    this.at(".close").addEventListener("click", () => this.pick(null));
    this.at(".text").addEventListener("click", (event) => {
      const cell = event.target.closest(".cell");
      if (cell) this.pick(Number(cell.dataset.cell));
    });
    const plot = this.at(".plot");
    plot.addEventListener("pointerdown", (event) => { plot.setPointerCapture(event.pointerId); this.point(event, true); });
    plot.addEventListener("pointermove", (event) => { if (event.buttons) this.point(event, false); });
    new ResizeObserver(() => this.paint()).observe(plot);
    this.tell(0);
  }
  figures() {
    const {passes, rows, answered, seconds} = this.run, last = seconds.length ? seconds[seconds.length - 1] : 0;
    const known = [["passes", number(passes, 0)], ["tokens", number(answered, 0)],
                   ["tokens per pass", passes ? number(answered / passes, 2) : "\u2013"],
                   ["rows per token", answered ? number(rows / answered, 1) : "\u2013"],
                   ["tokens per second", last ? number(answered / last, answered / last < 10 ? 1 : 0) : "\u2013"]];
    for (const [name, value] of known) {
      const pair = make("div");
      pair.append(make("dt", "", name), make("dd", "", value));
      this.at(".figures").append(pair);
    }
  }
  chooser() {
    const {requests} = this.run, select = this.at(".which select");
    this.at(".which").hidden = requests.length < 2;
    requests.forEach((_, i) => select.append(new Option(`${i + 1} of ${requests.length}`, i)));
    select.addEventListener("change", () => { this.tell(Number(select.value)); player.begin(false); });
  }
  tell(request) {
    this.story = new Story(this.run, this.run.requests[request]);
    this.step = 0;
    this.picked = null;
    this.at(".token").hidden = true;
    this.at(".hint").hidden = false;
    this.prompt();
    this.cells();
    this.legend();
    this.caption();
    this.paint();
  }
  prompt() {
    const {story} = this, {prompt, promptJoined} = story.told, joined = new Map(promptJoined.map(([at, count, text]) => [at, [count, text]]));
    const nodes = [];
    for (let i = 0; i < prompt.length;) {
      const [count, text] = joined.get(i) || [1, story.text(prompt[i])];
      const special = this.run.special.includes(prompt[i]);
      nodes.push(special ? make("span", "special", text) : make("bdi", "", text.replace(/\p{Surrogate}/gu, "\ufffd").replace(UNSEEN, visible)));
      i += count;
    }
    this.at(".prompt p").replaceChildren(...nodes);
    this.at(".prompt").hidden = !prompt.length;
    const told = nodes.map((node) => node.className ? " " : node.textContent);
    this.at(".prompt bdi").textContent = told.join("").replace(/\s+/g, " ").slice(0, LONGEST_PREVIEW);
  }
  cells() {
    const {story} = this, joined = new Map();
    for (const group of story.told.joined) for (let i = 0; i < group[1]; i++) joined.set(group[0] + i, {group, first: i === 0});
    this.joined = joined;
    this.marks = [];
    const nodes = [];
    let word = null, before = "";
    for (let cell = 0; cell < story.told.cells; cell++) {
      const token = story.token(cell, story.steps), special = this.run.special.includes(token);
      const text = joined.has(cell) ? (joined.get(cell).first ? joined.get(cell).group[2] : "") : special ? "" : story.text(token);
      const mark = make("span", "cell"), inner = make("span");
      mark.dataset.cell = cell;
      mark.dataset.ghost = joined.has(cell) ? (joined.get(cell).first ? visible(text) : "\u00b7") : story.sign(token);
      mark.setAttribute("role", "button");
      mark.tabIndex = cell === 0 ? 0 : -1;
      mark.append(inner);
      this.marks.push({mark, inner, shown: null});
      const goesOn = joined.has(cell) && !joined.get(cell).first ||
        CONTINUES.test(before) && GOES_ON.test(text) && !BREAKS_ANYWHERE.test(before + text);
      if (!word || !goesOn || word.childElementCount >= LONGEST_WORD) nodes.push(word = make("span", "word"));
      word.append(mark);
      const lines = (text.match(/\r\n|\n|\r/g) || []).length;
      for (let i = 0; i < Math.min(lines, 2); i++) nodes.push(make("br"));
      if (lines) word = null;
      before = text || (joined.has(cell) ? before : "");
    }
    this.at(".text").replaceChildren(...nodes);
  }
  /** What a cell looks like after a step. */
  look(cell, step, end) {
    const {story} = this, token = story.token(cell, step);
    if (token === null) return {names: "unborn", text: "", says: ""};
    const event = story.last(cell, step), now = event !== null && event.step === step && step > 0;
    const place = `position ${cell + 1}`;
    if (token === this.run.mask) {
      if (now && event.kind === REVOKE) return {names: "mask taken", text: "\u21ba", says: `${place}: taken back`};
      const guess = view.guesses && step ? story.guess(cell, step - 1) : null;
      if (guess) return {names: "guess", text: story.sign(guess.token), says: `${place}: guess ${visible(story.text(guess.token))}`};
      const width = letters(this.marks[cell].mark.dataset.ghost);
      return {names: "mask", text: "\u2591".repeat(width), says: `${place}: masked`};
    }
    const names = [], loose = story.told.unsettled && step && cell >= story.told.unsettled[step - 1] && event.kind !== null;
    let text = story.sign(token);
    const together = this.joined.get(cell);
    if (together && this.whole(together.group, step)) {
      text = together.first ? visible(together.group[2]) : "\u00b7";
      if (!together.first) names.push("joined");
    }
    if (now) names.push("new");
    if (event.kind === EDIT) names.push("edited");
    if (loose && !now) names.push("loose");
    if (this.run.ends.includes(token)) names.push("end");
    if (cell > end) names.push("after");
    const state = cell > end ? "after the end" : now ? event.kind === EDIT ? "just changed" : "just written" : loose ? "may change" : "settled";
    const known = visible(story.text(token));
    const tint = event.kind === null || event.step === 0 ? null : ramp((event.step - 1) / Math.max(1, story.steps - 1));
    return {names: names.join(" "), text, says: `${place}: ${known}, ${state}`, tint};
  }
  whole([first, count], step) {
    for (let cell = first; cell < first + count; cell++) {
      if (this.story.token(cell, step) !== this.story.token(cell, this.story.steps)) return false;
    }
    return true;
  }
  show(step) {
    this.step = step;
    const end = this.story.end(step);
    this.at(".text").classList.toggle("order", view.order);
    this.marks.forEach((slot, cell) => {
      const {names, text, says, tint} = this.look(cell, step, end), tinted = view.order && tint;
      const key = `${names}|${text}|${says}|${tinted || ""}`;
      if (slot.shown === key) return;
      slot.shown = key;
      const {mark, inner} = slot;
      mark.className = `cell ${names}${tinted ? " tinted" : ""}${letters(text) > letters(mark.dataset.ghost) ? " wide" : ""}`;
      mark.style.setProperty("--tint", tinted ? css(tint) : "");
      mark.style.setProperty("--tint-ink", tinted ? inkOn(tint) : "");
      mark.setAttribute("aria-label", says);
      inner.textContent = text;
    });
    this.cursor();
    if (this.picked !== null) this.detail();
  }
  legend() {
    const {told} = this.story, known = [["mask", "\u2591\u2591", "masked"], ["new", "new", "just written"], ["", "text", "settled"],
      ["after", "text", "after the end"], ["end", "\u22a3", "end token"]];
    const kinds = new Set(told.writes.filter((_, i) => i % 5 === 2));
    if (told.unsettled) known.splice(2, 0, ["loose", "text", "may change yet"]);
    if (kinds.has(EDIT)) known.splice(2, 0, ["edited new", "new", "just changed"]);
    if (kinds.has(REVOKE)) known.splice(1, 0, ["mask taken", "\u21ba", "taken back"]);
    if (view.guesses && told.guesses) known.splice(1, 0, ["guess", "guess", "predicted, not written"]);
    this.at(".states").replaceChildren(...known.map(([names, text, says]) => {
      const entry = make("span"), sample = make("span", `cell ${names}`);
      sample.append(make("span", "", text));
      entry.append(sample, says);
      return entry;
    }));
    const bar = this.at(".ramp i");
    bar.style.background = `linear-gradient(90deg, ${RAMP.join(", ")})`;
    this.at(".ramp").hidden = !view.order;
  }
  caption() {
    const {told, steps} = this.story, full = [...told.full].filter((c) => c === "1").length;
    const marks = full === steps ? "Every pass computed all rows." : `Marks above: passes that computed all rows and renewed the cache, ${full} of ${steps}.`;
    this.at("figcaption").textContent = `Passes from left to right, positions from top to bottom. A bar begins where a token was written; ` +
      `its colour says when, from blue to yellow. Lines are borders of blocks, lighter ground the block at work. ${marks}` +
      (view.guesses && told.guesses ? " Grey: how sure the passes were of what they did not write." : "");
  }
  // ---- the raster
  paint() {
    const {story} = this, canvas = this.at("canvas"), width = this.at(".plot").clientWidth, cells = story.told.cells;
    if (!width || !cells) return;
    const scale = window.devicePixelRatio || 1, ticks = 9;
    const height = ticks + cells * Math.max(1, Math.min(6, Math.floor(TALLEST_RASTER / cells)));
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    canvas.style.height = `${height}px`;
    const brush = canvas.getContext("2d"), top = Math.round(ticks * scale);
    const colour = (name) => { probe.style.color = `var(${name})`; return getComputedStyle(probe).color; };
    const columns = story.steps + 1, x = (step) => Math.round((step * canvas.width) / columns);
    const y = (cell) => top + Math.round((cell * (canvas.height - top)) / cells);
    this.geometry = {columns, cells, top: top / scale, height};
    brush.fillStyle = colour("--sunken");
    brush.fillRect(0, 0, canvas.width, canvas.height);
    brush.fillStyle = colour("--raised");
    for (let pass = 0; pass < story.steps; pass++) {
      const [begin, end] = story.told.blocks.slice(2 * pass, 2 * pass + 2);
      brush.fillRect(x(pass + 1), y(begin), x(pass + 2) - x(pass + 1), y(end) - y(begin));
    }
    if (view.guesses && story.told.guesses) this.paintGuesses(brush, x, y, colour("--ink"));
    const gap = y(1) - y(0) > 3 * scale ? 1 : 0;
    for (let cell = 0; cell < cells; cell++) {
      story.events[cell].forEach((event, i) => {
        const until = i + 1 < story.events[cell].length ? story.events[cell][i + 1].step : columns;
        if (event.token === this.run.mask || until <= event.step) return;
        brush.fillStyle = event.kind === null ? colour("--line") : css(ramp((event.step - 1) / Math.max(1, story.steps - 1)));
        brush.globalAlpha = event.kind === FILL ? 0.35 : 1;
        brush.fillRect(x(event.step), y(cell), x(until) - x(event.step), Math.max(1, y(cell + 1) - y(cell) - gap));
      });
    }
    brush.globalAlpha = 1;
    brush.fillStyle = colour("--faint");
    const borders = new Set(story.told.blocks.filter((cell) => cell > 0 && cell < cells));
    for (const cell of borders) brush.fillRect(0, y(cell) - gap, canvas.width, Math.max(1, Math.round(scale)));
    brush.fillStyle = colour("--paper");
    brush.fillRect(0, 0, canvas.width, top);
    if (story.told.full.includes("0")) {
      brush.fillStyle = colour("--ink");
      [...story.told.full].forEach((flag, pass) => {
        if (flag === "1") brush.fillRect(x(pass + 1), 1 * scale, Math.max(2 * scale, Math.min(x(pass + 2) - x(pass + 1) - 1, 5 * scale)), top - 3 * scale);
      });
    }
    canvas.setAttribute("aria-label", `Which of ${cells} positions was written in which of ${plural(story.steps, "pass")}`);
    this.cursor();
  }
  paintGuesses(brush, x, y, ink) {
    const {story} = this;
    brush.fillStyle = ink;
    for (let cell = 0; cell < story.told.cells; cell++) {
      for (let pass = 0; pass < story.steps; pass++) {
        const guess = story.token(cell, pass + 1) === this.run.mask ? story.guess(cell, pass) : null;
        if (!guess) continue;
        brush.globalAlpha = 0.4 * (guess.confidence - this.run.range[0]) / (this.run.range[1] - this.run.range[0]);
        brush.fillRect(x(pass + 1), y(cell), x(pass + 2) - x(pass + 1), y(cell + 1) - y(cell));
      }
    }
    brush.globalAlpha = 1;
  }
  cursor() {
    if (!this.geometry) return;
    const {columns, cells, top, height} = this.geometry, at = (100 * (this.step + 1)) / columns;
    this.at(".cursor").style.left = `${Math.min(at, 100)}%`;
    this.at(".later").style.width = `${Math.max(0, 100 - at)}%`;
    const picked = this.at(".picked");
    picked.hidden = this.picked === null;
    if (this.picked !== null) {
      const row = (height - top) / cells;
      picked.style.top = `${top + this.picked * row - 1}px`;
      picked.style.height = `${Math.max(row, 2) + 2}px`;
    }
  }
  point(event, first) {
    const box = this.at(".plot").getBoundingClientRect(), {columns, cells, top, height} = this.geometry;
    const step = Math.min(Math.max(Math.floor(((event.clientX - box.left) / box.width) * columns), 0), this.story.steps);
    player.pause();
    player.go(player.indexOf(this, step));
    const cell = Math.floor(((event.clientY - box.top - top) / (height - top)) * cells);
    if (first && cell >= 0 && cell < cells && this.story.born[cell] <= step) this.pick(cell);
  }
  // ---- one token
  pick(cell) {
    for (const slot of this.marks) slot.mark.removeAttribute("aria-pressed");
    const had = this.picked;
    this.picked = cell;
    this.at(".token").hidden = cell === null;
    this.at(".hint").hidden = cell !== null;
    if (cell === null) {
      if (had !== null) this.marks[had].mark.focus({preventScroll: true});
    } else {
      for (const pane of panes) if (pane !== this && pane.picked !== null) pane.pick(null);
      for (const slot of this.marks) slot.mark.tabIndex = -1;
      const {mark} = this.marks[cell];
      mark.setAttribute("aria-pressed", "true");
      mark.tabIndex = 0;
      mark.focus({preventScroll: true});
      mark.scrollIntoView({block: "nearest"});
      this.detail();
    }
    this.cursor();
  }
  move(by) {
    const visibleCells = this.marks.map((_, cell) => cell).filter((cell) => this.story.born[cell] <= this.step);
    const at = visibleCells.indexOf(this.picked);
    this.pick(visibleCells[Math.min(Math.max(at + by, 0), visibleCells.length - 1)]);
  }
  detail() {
    const {story, picked: cell, step} = this, token = story.token(cell, step);
    const masked = token === null || token === this.run.mask;
    this.at(".token h3").textContent = masked ? "\u2591\u2591\u2591" : visible(story.text(token));
    const event = story.last(cell, step), wrote = event && event.kind !== null ? `, written by pass ${event.step}` : masked ? "" : ", given";
    this.at(".place").textContent = `position ${cell + 1} of ${story.told.cells}${masked ? ", masked" : wrote}`;
    this.at(".curve").replaceChildren(this.curve(cell));
    const parts = [], history = story.events[cell].filter((e) => e.kind !== null);
    if (history.length) {
      parts.push(make("h4", "", "What happened"));
      const names = ["written", "changed", "taken back", "filled after the end"];
      parts.push(table(history.map((e) => [e.kind === REVOKE ? "\u21ba" : visible(story.text(e.token)),
        `${names[e.kind]}, pass ${e.step}`, e.confidence === null ? "" : number(e.confidence, 3)])));
    }
    const rivals = this.rivals(cell, history);
    if (rivals.length) {
      parts.push(make("h4", "", "What else was predicted here"));
      parts.push(table(rivals.map(([other, seen]) => [visible(story.text(other)), plural(seen.count, "pass"), `up to ${number(seen.best, 2)}`])));
    } else {
      parts.push(make("p", "note", story.told.guesses ? "Nothing else was predicted here." :
        "What was predicted here and not written is on the page when the run was made with drafts=True."));
    }
    this.at(".tables").replaceChildren(...parts);
  }
  /** Tokens that passes predicted in a cell, but for the one that stayed: the most frequent first. */
  rivals(cell, history) {
    const {story} = this, seen = new Map(), stayed = story.token(cell, story.steps);
    const note = (token, confidence) => {
      if (token === stayed || token === this.run.mask) return;
      const known = seen.get(token) || {count: 0, best: this.run.range[0]};
      seen.set(token, {count: known.count + 1, best: Math.max(known.best, confidence ?? this.run.range[0])});
    };
    for (let pass = 0; pass < story.steps; pass++) {
      const guess = story.guess(cell, pass);
      if (guess) note(guess.token, guess.confidence);
      else for (const e of history) if (e.step === pass + 1) note(e.token, e.confidence);
    }
    return [...seen].sort((a, b) => b[1].count - a[1].count).slice(0, 8);
  }
  curve(cell) {
    const {story} = this, width = 280, height = 120, left = 26, base = 96, [low, high] = this.run.range;
    const x = (step) => left + ((width - left - 4) * step) / Math.max(1, story.steps), y = (value) => base - ((base - 10) * (value - low)) / (high - low);
    const svg = draw("svg", {viewBox: `0 0 ${width} ${height}`, role: "img"});
    for (const value of [low, (low + high) / 2, high]) {
      svg.append(draw("path", {class: "frame", d: `M${left} ${y(value)}H${width - 4}`}));
      const label = draw("text", {x: left - 5, y: y(value) + 3, "text-anchor": "end"});
      label.textContent = String(value);
      svg.append(label);
    }
    let path = "", open = false;
    for (let pass = 0; pass < story.steps; pass++) {
      const guess = story.guess(cell, pass);
      path += guess ? `${open ? "L" : "M"}${x(pass + 1).toFixed(1)} ${y(guess.confidence).toFixed(1)}` : "";
      open = guess !== null;
    }
    if (path) svg.append(draw("path", {class: "run-of", d: path}));
    const written = story.events[cell].filter((e) => e.kind !== null && typeof e.confidence === "number");
    for (const e of written) svg.append(draw("circle", {class: "dot wrote", cx: x(e.step), cy: y(e.confidence), r: 4}));
    svg.append(draw("path", {class: "now", d: `M${x(this.step)} 6V${base}`}));
    for (const [step, anchor] of [[0, "start"], [story.steps, "end"]]) {
      const label = draw("text", {x: x(step), y: base + 15, "text-anchor": anchor});
      label.textContent = step ? `pass ${step}` : "0";
      svg.append(label);
    }
    svg.setAttribute("aria-label", written.length ? `Confidence: ${written.map((e) => `${number(e.confidence, 2)} in pass ${e.step}`).join(", ")}`
      : "Confidence: never written by a pass");
    return svg;
  }
}

function table(rows) {
  const found = make("table"), body = make("tbody");
  for (const row of rows) {
    const line = make("tr");
    line.append(...row.map((text) => make("td", "", text)));
    body.append(line);
  }
  found.append(body);
  return found;
}

// ---- the clock: moments that all runs share, by pass or by second

const player = {
  index: 0, moments: [], timer: 0, begun: 0,
  begin(fresh) {
    const by = Math.max(...panes.map((pane) => pane.story.steps));
    this.seconds = [0, ...new Set(panes.flatMap((pane) => pane.story.seconds))].sort((a, b) => a - b);
    this.length = view.together ? this.seconds.length - 1 : by;
    $("scrub").max = this.length;
    if (fresh) {
      const speeds = [...$("speed").options].map((o) => Number(o.value)).filter(Boolean);
      $("speed").value = speeds.find((speed) => by / speed <= SHORTEST_PLAY) || speeds[speeds.length - 1];
    }
    this.go(fresh ? this.length : Math.min(this.index, this.length));
  },
  stepOf(pane, index) {
    const {steps, seconds} = pane.story;
    return view.together ? seconds.filter((s) => s <= this.seconds[index]).length : Math.min(index, steps);
  },
  indexOf(pane, step) {
    return view.together ? this.seconds.indexOf(step ? pane.story.seconds[step - 1] : 0) : step;
  },
  go(index) {
    this.index = Math.min(Math.max(index, 0), this.length);
    $("scrub").value = this.index;
    for (const pane of panes) pane.show(this.stepOf(pane, this.index));
    const steps = panes.map((pane) => pane.step), left = panes.map((pane) => pane.story.masks(pane.step));
    const where = view.together ? `${number(this.seconds[this.index], 2)} s of ${number(this.seconds[this.length], 2)}` : `pass ${this.index} of ${this.length}`;
    $("where").textContent = where;
    $("scrub").setAttribute("aria-valuetext", where);
    if (!this.playing) $("said").textContent = `${where}, ${left.map((count) => plural(count, "mask")).join(" and ")} left`;
    return steps;
  },
  get playing() { return document.body.classList.contains("playing"); },
  play() {
    if (this.index >= this.length) this.go(0);
    document.body.classList.add("playing");
    $("play").setAttribute("aria-label", "Pause");
    this.begun = performance.now();
    this.from = this.index;
    cancelAnimationFrame(this.timer);
    const frame = (now) => {
      if (!this.playing) return;
      const index = this.due((now - this.begun) / 1000);
      if (index > this.index) this.go(index);
      if (this.index >= this.length) this.pause();
      else this.timer = requestAnimationFrame(frame);
    };
    this.timer = requestAnimationFrame(frame);
  },
  /** The moment to show so many seconds after play began. */
  due(elapsed) {
    const speed = $("speed").value;
    if (speed !== "real") return Math.min(this.from + Math.floor(elapsed * Number(speed)), this.length);
    const at = (index) => (view.together ? this.seconds[index] : Math.max(...panes.map((p) => p.story.seconds[Math.min(index, p.story.steps) - 1] || 0)));
    let index = this.from;
    while (index < this.length && at(index + 1) - at(this.from) <= elapsed) index++;
    return index;
  },
  pause() {
    cancelAnimationFrame(this.timer);
    document.body.classList.remove("playing");
    $("play").setAttribute("aria-label", "Play");
    this.go(this.index);
  },
  toggle() { if (this.playing) this.pause(); else this.play(); },
};

// ---- what the reader chooses

const view = {order: false, guesses: false, together: false};
const panes = [], probe = make("span", "unseen");

function repaint() {
  for (const pane of panes) {
    pane.legend();
    pane.caption();
    pane.paint();
  }
  player.go(player.index);
}
function press(button, on) {
  $(button).setAttribute("aria-pressed", String(on));
}
function showOrder(on) {
  view.order = on;
  press("show-order", on);
  press("show-text", !on);
  repaint();
}
function showGuesses(on) {
  view.guesses = on;
  press("guesses", on);
  repaint();
}
function together(on) {
  const [pane] = panes, {step} = pane;
  view.together = on;
  press("clock", on);
  player.begin(false);
  player.go(player.indexOf(pane, step));
}
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (document.documentElement.dataset.theme || (prefersDark.matches ? "dark" : "light")) === "dark";
function theme() {
  document.documentElement.dataset.theme = isDark() ? "light" : "dark";
  $("theme").setAttribute("aria-label", isDark() ? "Light colours" : "Dark colours");
  repaint();
}
const picking = () => panes.find((pane) => pane.picked !== null);
const KEYS = {
  " ": () => player.toggle(),
  ArrowLeft: () => { player.pause(); player.go(player.index - 1); },
  ArrowRight: () => { player.pause(); player.go(player.index + 1); },
  Home: () => { player.pause(); player.go(0); },
  End: () => { player.pause(); player.go(player.length); },
  ArrowUp: () => picking()?.move(-1),
  ArrowDown: () => picking()?.move(1),
  Escape: () => picking()?.pick(null),
  h: () => showOrder(!view.order),
  g: () => { if (!$("guesses").hidden) showGuesses(!view.guesses); },
  c: () => { if (!$("clock").hidden) together(!view.together); },
  t: theme,
};
addEventListener("keydown", (event) => {
  const {target, key} = event, act = KEYS[key.length === 1 ? key.toLowerCase() : key];
  if (!act || event.ctrlKey || event.metaKey || event.altKey || target.tagName === "SELECT") return;
  const native = target.closest("button, summary") && key === " " || !picking() && (key === "ArrowUp" || key === "ArrowDown");
  if (native) return;
  event.preventDefault();
  act();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && event.target.classList.contains("cell")) event.target.click();
});

const record = JSON.parse($("record").textContent);
document.body.append(probe);
record.runs.forEach((run, i) => {
  const pane = new Pane(run, i);
  panes.push(pane);
  $("runs").append(pane.section);
});
$("runs").classList.toggle("two", panes.length > 1);
$("guesses").hidden = !panes.some((pane) => pane.run.requests.some((told) => told.guesses));
$("clock").hidden = panes.length < 2;
document.title = ["Replay", ...record.runs.map((run) => run.name || run.method).filter(Boolean)].join(" \u00b7 ");
$("show-text").addEventListener("click", () => showOrder(false));
$("show-order").addEventListener("click", () => showOrder(true));
$("guesses").addEventListener("click", () => showGuesses(!view.guesses));
$("clock").addEventListener("click", () => together(!view.together));
$("theme").addEventListener("click", theme);
$("play").addEventListener("click", () => player.toggle());
$("back").addEventListener("click", KEYS.ArrowLeft);
$("on").addEventListener("click", KEYS.ArrowRight);
$("scrub").addEventListener("input", (event) => { const index = Number(event.target.value); player.pause(); player.go(index); });
prefersDark.addEventListener("change", repaint);
player.begin(true);
})();
