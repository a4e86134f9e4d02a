// Puts the page together: says what there is, loads it with a progress bar, and hands the pages their model.

import { Chat } from "./chat.js";
import { ChatTokens } from "./chat_tokens.js";
import { Compare } from "./compare.js";
import { byId, complain, element, megabytes } from "./dom.js";
import { build, Engine, missing } from "./engine.js";
import { Refused } from "./files.js";
import { Inside } from "./inside.js";
import { Store } from "./store.js";
import { showTraining } from "./training.js";

const LARGE = 50e6; // bytes that are not fetched before the reader says so

class App {
  constructor(manifest) {
    this.manifest = manifest;
    this.store = new Store(manifest.name);
    this.engines = new Map();
    this.ready = new Set();
    this.tokens = loadTokens(manifest.tokenizer);
    this.tokens.catch(() => {}); // told where it is waited for
  }

  isReady = () => this.ready.has(this.manifest.models[0].name);

  /** Return a model, loaded if need be, or again if it broke; without a name the one that was released. */
  async engine(name = this.manifest.models[0].name) {
    if ((await this.engines.get(name))?.broken) this.engines.delete(name);
    if (!this.engines.has(name)) {
      const loading = this.load(this.manifest.models.find((model) => model.name === name));
      this.engines.set(name, loading);
      loading.catch(() => this.engines.delete(name)); // asked again, it is tried again
    }
    return this.engines.get(name);
  }

  async load(model) {
    const parts = Object.values(build(this.manifest.engine));
    const all = [...parts, model].reduce((sum, file) => sum + file.bytes, 0);
    let come = 0;
    byId("load").hidden = true;
    byId("progress").hidden = false;
    byId("loading").classList.remove("ready");
    const progress = (bytes) => {
      come += bytes;
      byId("progress").value = come / all;
      const done = come >= all ? " · starting …" : "";
      byId("loading-text").textContent = `${megabytes(come)} of ${megabytes(all)}${done}`;
    };
    byId("loading-text").textContent = `0 of ${megabytes(all)}, kept for your next visit`;
    try {
      const engine = await Engine.load(this.manifest, model, progress);
      this.ready.add(model.name);
      byId("loading").classList.add("ready");
      byId("loading-text").textContent = `● Ready, on your own machine (${engine.where})`;
      return engine;
    } catch (error) {
      byId("loading-text").textContent = "The model is not loaded.";
      throw error;
    } finally {
      byId("progress").hidden = true;
    }
  }

  /** Tell the reader in a sentence what went wrong. */
  fail(error) {
    if (!(error instanceof Refused)) console.error(error);
    complain(error instanceof Refused ? error.message : `That did not work (${error.message}). Reload the page and try again.`);
  }

  /** Begin to load, or say what it takes and wait, where it is much or the reader saves data. */
  async begin() {
    const parts = [...Object.values(build(this.manifest.engine)), this.manifest.models[0]];
    const size = parts.reduce((sum, file) => sum + file.bytes, 0);
    if (size < LARGE && !navigator.connection?.saveData) return this.engine();
    byId("loading-text").textContent = "It is kept for your next visit.";
    byId("progress").hidden = true;
    byId("load").textContent = `Load the model (${megabytes(size)})`;
    byId("load").hidden = false;
    return new Promise((done, failed) => {
      byId("load").onclick = () => this.engine().then(done, failed);
    });
  }
}

async function loadTokens(about) {
  const [json, config] = await Promise.all(["tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"].map(fetchJson));
  return new ChatTokens(json, config, about);
}

async function fetchJson(path) {
  const answer = await fetch(path).catch(() => null);
  if (!answer?.ok) throw new Refused(`${path} could not be fetched; look to your connection and reload the page.`);
  return answer.json();
}

function openTab(tab, pages) {
  for (const other of document.querySelectorAll("[role=tab]")) {
    const chosen = other === tab;
    other.setAttribute("aria-selected", String(chosen));
    other.tabIndex = chosen ? 0 : -1;
    byId(other.getAttribute("aria-controls")).hidden = !chosen;
  }
  if (tab.id === "tab-inside") pages.inside.opened();
}

function connectTabs(pages) {
  const tabs = [...document.querySelectorAll("[role=tab]")];
  tabs.forEach((tab, at) => {
    tab.onclick = () => openTab(tab, pages);
    tab.onkeydown = (event) => {
      const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!by) return;
      const next = tabs[(at + by + tabs.length) % tabs.length];
      openTab(next, pages);
      next.focus();
    };
  });
}

function introduce({ name, about, source }) {
  document.title = name;
  byId("name").textContent = name;
  byId("about").textContent = `${about} It runs in your browser: what you write stays on your machine.`;
  if (!source) return;
  const link = element("a", { href: source.url }, `${source.id}@${source.revision.slice(0, 8)}`);
  byId("source").append("Weights: ", link, ". Engine: llama.cpp by wllama. Nothing is sent to anybody.");
}

/** Have everything kept by the service worker, so that the page opens without a network the next time. */
async function keepForOffline(files) {
  if (!navigator.serviceWorker) return;
  await navigator.serviceWorker.register("sw.js");
  await navigator.serviceWorker.ready;
  if (!navigator.serviceWorker.controller) await new Promise((done) => (navigator.serviceWorker.oncontrollerchange = done));
  await Promise.all(files.map((file) => fetch(file)));
  document.documentElement.dataset.offline = "ready";
}

async function start() {
  const manifest = await fetchJson("manifest.json");
  introduce(manifest);
  const app = new App(manifest);
  const pages = { chat: new Chat(app), compare: new Compare(app), inside: new Inside(app) };
  connectTabs(pages);
  fetchJson("training.json").then(showTraining, () => showTraining(null));
  const lacks = missing();
  if (lacks) {
    byId("progress").hidden = true;
    byId("loading-text").textContent = "";
    throw new Refused(lacks);
  }
  window.demo = { app, ...pages };
  const loading = app.begin();
  keepForOffline(manifest.files).catch((error) => console.info(`not kept for offline use: ${error.message}`));
  await Promise.all([loading, app.tokens]);
}

start().catch((error) => {
  if (!(error instanceof Refused)) console.error(error);
  complain(error instanceof Refused ? error.message : `The page did not start: ${error.message}.`);
});
