// What stands in every cell of a prompt after every pass, and how texts are written that have no shape of their own. Nothing here touches
// the document; page.js does.
"use strict";
const REVEAL = 0, EDIT = 1, REVOKE = 2, FILL = 3;
const DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_";
const PARTS_OF_ONE = 1000;

// ---- text: what has no shape of its own gets one

const UNSEEN = /[\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/gu;
function visible(text) {
  let shown = text
    .replace(/\p{Surrogate}/gu, "\ufffd")
    .replace(/\r\n|\n|\r/g, "\u21b5")
    .replace(/\t/g, "\u21e5")
    .replace(/[\u0000-\u001f]/g, (c) => String.fromCharCode(0x2400 + c.charCodeAt(0)))
    .replace(/\u007f/g, "\u2421")
    .replace(/[\u0080-\u009f]/g, (c) => `\u2039${c.charCodeAt(0).toString(16)}\u203a`)
    .replace(UNSEEN, (c) => `\u2039${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}\u203a`);
  if (/^\p{M}/u.test(shown)) shown = `\u25cc${shown}`;
  return /^\s+$/u.test(shown) ? "\u2423".repeat([...shown].length) : shown;
}

/** Numbers of so many digits each, two by two. */
function pairs(text, width) {
  const read = (at) => [...text.slice(at, at + width)].reduce((sum, digit) => sum * DIGITS.length + DIGITS.indexOf(digit), 0);
  return Array.from({length: text.length / width / 2}, (_, i) => [read(2 * i * width), read((2 * i + 1) * width)]);
}

// ---- one prompt of a run: what stands in every cell after every pass

class Story {
  constructor(run, told) {
    this.run = run;
    this.told = told;
    this.steps = told.forwards.length;
    this.seconds = told.forwards.map((forward) => run.seconds[forward]);
    this.born = new Array(told.cells).fill(0);
    for (const [cell, step] of told.born) this.born[cell] = step;
    this.events = Array.from({length: told.cells}, () => []);
    for (let i = 0; i < told.given.length; i += 2) this.events[told.given[i]].push({step: 0, kind: null, token: told.given[i + 1]});
    for (let i = 0; i < told.writes.length; i += 5) {
      const [step, cell, kind, token, share] = told.writes.slice(i, i + 5);
      this.events[cell].push({step: step + 1, kind, token, confidence: share < 0 ? null : this.value(share / PARTS_OF_ONE)});
    }
    this.guesses = told.guesses && told.guesses.map((known) => known.length && [known[0], known[1], pairs(known[2], told.width)]);
  }
  value(share) {
    const [low, high] = this.run.range;
    return low + share * (high - low);
  }
  /** The last event of a cell up to a step. */
  last(cell, step) {
    let found = null;
    for (const event of this.events[cell]) {
      if (event.step > step) break;
      found = event;
    }
    return found;
  }
  /** The token of a cell after so many steps; null before the cell is there. */
  token(cell, step) {
    if (this.born[cell] > step) return null;
    const event = this.last(cell, step);
    return event ? event.token : this.run.mask;
  }
  canvas(step) {
    return this.events.map((_, cell) => this.token(cell, step)).filter((token) => token !== null);
  }
  /** Where the answer ends: the first cell that holds an end token. */
  end(step) {
    const cell = this.events.findIndex((_, at) => this.run.ends.includes(this.token(at, step)));
    return cell < 0 ? this.told.cells : cell;
  }
  masks(step) {
    return this.events.reduce((sum, _, cell) => sum + (this.token(cell, step) === this.run.mask), 0);
  }
  /** What a pass, counted from 0, predicted in a cell. */
  guess(cell, pass) {
    const known = this.guesses && this.guesses[cell];
    if (!known) return null;
    const [first, levels, changes] = known, level = levels[pass - first];
    if (level === undefined || level === " ") return null;
    const token = changes.findLast(([step]) => step <= pass)[1];
    return {token, confidence: this.value(DIGITS.indexOf(level) / (DIGITS.length - 1))};
  }
  text(token) {
    return this.run.tokens[token];
  }
  /** How a token is written in its cell: one that is no text has a sign. */
  sign(token) {
    if (this.run.ends.includes(token)) return "\u22a3";
    return this.run.special.includes(token) ? "\u25c7" : visible(this.text(token));
  }
}
