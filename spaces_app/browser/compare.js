// The page `Compare`: one prompt, two models or two draws of one, side by side; a click on the better one is a pair.

import { readNumber } from "./chat.js";
import { checkText } from "./chat_tokens.js";
import { byId, complain, describe, download, element, newSeed } from "./dom.js";
import { asLines, asPair } from "./store.js";

const SIDES = ["a", "b"];

export class Compare {
  constructor(app) {
    this.app = app;
    this.kept = app.store.read("pairs");
    this.asked = null;
    this.running = null;
    const names = app.manifest.models.map((model) => model.name);
    for (const [id, chosen] of [["left", names[0]], ["right", names.at(-1)]]) {
      byId(id).append(...names.map((name) => element("option", { value: name, selected: name === chosen }, name)));
    }
    byId("compare-prompt").value = app.manifest.examples[0] ?? "";
    byId("compare-temperature").value = app.manifest.defaults.temperature || 0.7; // greedy, two draws are one answer
    byId("compare-temperature").dataset.name = "The temperature";
    byId("compare-seed").dataset.name = "The seed";
    byId("ask").onsubmit = (event) => {
      event.preventDefault();
      this.ask();
    };
    byId("compare-stop").onclick = () => this.running?.abort();
    for (const choice of ["a", "tie", "b"]) byId(`choose-${choice}`).onclick = () => this.choose(choice);
    byId("download-pairs").onclick = () => download("pairs.jsonl", asLines(this.kept));
    byId("forget-pairs").onclick = () => {
      this.kept = [];
      app.store.write("pairs", this.kept);
      this.showKept();
    };
    this.showKept();
  }

  async ask() {
    if (this.running) return;
    complain("");
    this.running = new AbortController();
    this.asked = null;
    this.canChoose(false);
    byId("compare").disabled = true;
    byId("compare-stop").hidden = false;
    byId("compare-status").textContent = this.app.isReady() ? "" : "Loading the models …";
    try {
      await this.run();
    } catch (error) {
      this.app.fail(error);
    } finally {
      this.running = null;
      byId("compare").disabled = false;
      byId("compare-stop").hidden = true;
    }
  }

  async run() {
    const prompt = checkText(byId("compare-prompt").value, "The prompt");
    if (!prompt) {
      byId("compare-status").textContent = "The prompt is empty; write something first.";
      return;
    }
    const system = checkText(byId("system").value, "The system prompt");
    const temperature = readNumber(byId("compare-temperature"));
    const given = readNumber(byId("compare-seed"));
    const seed = given < 0 ? newSeed() : given;
    const blind = byId("blind").checked;
    let models = [byId("left").value, byId("right").value];
    if (blind && Math.random() < 0.5) models.reverse();
    SIDES.forEach((side, at) => {
      byId(`title-${side}`).textContent = `Answer ${side.toUpperCase()}${blind ? "" : ` · ${models[at]}`}`;
      byId(`answer-${side}`).textContent = "";
      byId(`about-${side}`).textContent = "";
    });
    const tokens = await this.app.tokens;
    const engines = await Promise.all(models.map((name) => this.app.engine(name)));
    byId("compare-status").textContent = "";
    const sampling = { ...this.app.manifest.defaults, temperature };
    const answers = await Promise.all(
      SIDES.map(async (side, at) => {
        const { ids } = tokens.fit(system, [], prompt, sampling.max_new_tokens, engines[at].context);
        const update = (so_far) => (byId(`answer-${side}`).textContent = tokens.decode(so_far).replace(/\uFFFD+$/, ""));
        const done = await engines[at].generate(ids, sampling, (seed + at) % (2 ** 31), update, this.running.signal);
        if (!blind) byId(`about-${side}`).textContent = describe(done);
        const text = tokens.decode(done.ids);
        byId(`answer-${side}`).textContent = text;
        return text;
      }),
    );
    const same = answers[0].trim() === answers[1].trim();
    const empty = answers.some((text) => !text.trim());
    if (same) byId("compare-status").textContent = "Both gave the same answer; raise the temperature or take another model.";
    else if (empty) byId("compare-status").textContent = "One of the answers is empty, which is no pair.";
    else this.asked = { prompt, system, answers, models, meta: { ...sampling, seed, blind, source: this.app.manifest.source } };
    this.canChoose(Boolean(this.asked));
  }

  choose(choice) {
    const { prompt, system, answers, models, meta } = this.asked;
    this.asked = null;
    this.canChoose(false);
    const words = { a: "A is better", tie: "Tie", b: "B is better" }[choice];
    let said = `${words}. A was ${models[0]}, B was ${models[1]}.`;
    SIDES.forEach((side, at) => (byId(`title-${side}`).textContent = `Answer ${side.toUpperCase()} · ${models[at]}`));
    if (choice === "tie") said += " A tie is no pair.";
    else {
      const [chosen, rejected] = choice === "a" ? answers : [answers[1], answers[0]];
      const about = { ...meta, a: models[0], b: models[1], choice, time: new Date().toISOString() };
      this.kept = [...this.kept, asPair(system, prompt, chosen, rejected, about)];
      if (!this.app.store.write("pairs", this.kept)) said += " This browser keeps nothing: download the pairs before you leave.";
      this.showKept();
    }
    byId("compare-status").textContent = said;
  }

  canChoose(yes) {
    for (const choice of ["a", "tie", "b"]) byId(`choose-${choice}`).disabled = !yes;
  }

  showKept() {
    const count = this.kept.length;
    byId("download-pairs").textContent = count ? `Download my pairs (${count})` : "Download my pairs";
    for (const id of ["download-pairs", "forget-pairs"]) byId(id).disabled = !count;
  }
}
