// The page `Look inside`: a text's tokens by surprise, and what could come next at any place, by the engine's numbers.

import { readNumber } from "./chat.js";
import { checkText } from "./chat_tokens.js";
import { byId, complain, element, newSeed } from "./dom.js";
import { Refused } from "./files.js";

const TOP = 10;
const MOST = 160; // tokens of a text: each place is asked for its own
const LOUD = 8; // bits: a token at least that surprising has the full colour

export class Inside {
  constructor(app) {
    this.app = app;
    this.places = []; // of each token: id, text, bits (its surprise), top (what could come after it), drawn
    this.at = 0;
    byId("inside-text").value = app.manifest.examples[0] ?? "";
    byId("look-at").onsubmit = (event) => {
      event.preventDefault();
      this.work(() => this.look());
    };
    byId("step").onclick = () => this.work(() => this.step());
    byId("strip").onkeydown = (event) => this.walk(event);
    for (const id of ["inside-temperature", "inside-top-k"]) byId(id).onchange = () => this.work(() => this.showBars());
    byId("inside-temperature").dataset.name = "The temperature";
    byId("inside-top-k").dataset.name = "Top-k";
  }

  /** Look at the page's own example when it is first opened. */
  opened() {
    if (!this.places.length && !this.working) this.work(() => this.look());
  }

  async work(what) {
    if (this.working) return;
    this.working = true;
    complain("");
    byId("look").disabled = byId("step").disabled = true;
    try {
      byId("inside-status").textContent = this.app.isReady() ? "Reading …" : "Loading the model …";
      [this.engine, this.tokens] = await Promise.all([this.app.engine(), this.app.tokens]);
      await what();
      byId("inside-status").textContent = "";
    } catch (error) {
      byId("inside-status").textContent = "";
      this.app.fail(error);
    } finally {
      this.working = false;
      byId("look").disabled = false;
      byId("step").disabled = !this.places.length;
    }
  }

  async look() {
    const text = checkText(byId("inside-text").value, "The text");
    if (!text) throw new Refused("The text is empty; write something first.");
    const ids = byId("as-message").checked ? this.tokens.encode([{ role: "user", content: text }]) : this.tokens.encodeText(text);
    const most = Math.min(MOST, this.engine.context - 1);
    if (ids.length > most) throw new Refused(`The text has ${ids.length} tokens; ${most} is the most that can be looked into. Shorten it.`);
    const places = ids.map((id) => ({ id, text: this.tokens.piece(id), bits: null, top: [], drawn: false }));
    for (let at = 0; at < ids.length; at += 1) {
      const found = await this.engine.expect(ids.slice(0, at + 1), TOP, ids[at + 1]);
      places[at].top = found.top;
      if (at + 1 < ids.length) places[at + 1].bits = Math.max(found.bits, 0);
    }
    this.places = places;
    await this.pick(places.length - 1);
  }

  async step() {
    const ids = this.places.map((place) => place.id);
    if (ids.length >= Math.min(MOST, this.engine.context - 1)) throw new Refused(`There are ${ids.length} tokens, which is the most that can be looked into.`);
    const sampling = { temperature: this.temperature(), top_k: this.topK(), top_p: 1, repetition_penalty: 1, max_new_tokens: 1 };
    let drawn = [];
    const done = await this.engine.generate(ids, sampling, newSeed(), (so_far) => (drawn = so_far), undefined);
    const id = drawn[0] ?? this.places.at(-1).top[0][0]; // an end token is drawn, too
    const { bits } = await this.engine.expect(ids, TOP, done.tokens ? id : undefined);
    const { top } = await this.engine.expect([...ids, id], TOP);
    this.places.push({ id, text: this.tokens.piece(id), bits: Math.max(bits, 0), top, drawn: true });
    await this.pick(this.places.length - 1);
  }

  temperature = () => readNumber(byId("inside-temperature"));
  topK = () => readNumber(byId("inside-top-k"));

  async pick(at, focus = false) {
    this.at = at;
    byId("strip").replaceChildren(...this.places.map((place, index) => this.token(place, index)));
    if (focus) byId("strip").children[at].focus();
    await this.showBars();
  }

  token({ text, bits, drawn }, at) {
    const says = bits === null ? "the first token is given" : `${bits.toFixed(1)} bits of surprise`;
    const loud = Math.min(Math.round(((bits ?? 0) / LOUD) * 5), 5);
    return element(
      "button",
      {
        type: "button",
        class: `l${loud}${drawn ? " drawn" : ""}`,
        title: says,
        "aria-label": `${text}, ${says}`,
        "aria-pressed": String(at === this.at),
        tabindex: at === this.at ? 0 : -1,
        onclick: () => this.work(() => this.pick(at, true)),
      },
      text,
    );
  }

  /** Arrow keys go from token to token. */
  walk(event) {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const to = event.key === "Home" ? 0 : event.key === "End" ? this.places.length - 1 : this.at + (by ?? 0);
    if ((!by && !["Home", "End"].includes(event.key)) || to < 0 || to >= this.places.length) return;
    event.preventDefault();
    this.work(() => this.pick(to, true));
  }

  async showBars() {
    if (!this.places.length) return;
    const { top } = this.places[this.at];
    const ids = this.places.slice(0, this.at + 1).map((place) => place.id);
    const [temperature, topK] = [this.temperature(), this.topK()];
    const plain = temperature === 1 && topK === 0;
    const sampled = plain ? new Map(top) : await this.reshape(ids, temperature, topK, top);
    byId("bars").replaceChildren(
      element(
        "table",
        { class: "bars" },
        element("thead", {}, element("tr", {}, ...["Next token", "", "own|Model", "used|Sampled"].map(head))),
        element("tbody", {}, ...top.map(([id, share]) => this.row(id, share, sampled.get(id) ?? 0))),
      ),
    );
  }

  reshape(ids, temperature, topK, top) {
    if (temperature === 0) return new Map([[top[0][0], 1]]);
    return this.engine.reshaped(ids, temperature, topK, TOP);
  }

  row(id, share, used) {
    const bar = (y, part, name) => element("rect", { x: 0, y, height: 7, width: Math.max(100 * part, 0.5), class: name });
    return element(
      "tr",
      {},
      element("th", { scope: "row" }, element("code", {}, this.tokens.piece(id))),
      element("td", { class: "bar" }, element("svg", { viewBox: "0 0 100 16", preserveAspectRatio: "none", "aria-hidden": "true" }, bar(0, share, "own"), bar(8, used, "used"))),
      element("td", {}, percent(share)),
      element("td", {}, percent(used)),
    );
  }
}

function head(text) {
  const [name, title] = text.includes("|") ? text.split("|") : ["", text];
  return title ? element("th", { scope: "col" }, ...(name ? [element("i", { class: name })] : []), title) : element("td", {});
}

const percent = (share) => (share >= 0.0005 || share === 0 ? `${(100 * share).toFixed(1)} %` : "<0.1 %");
