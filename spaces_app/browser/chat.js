// The page `Chat`: conversations that stream, stop, are tried again, edited and kept in the reader's browser.

import { checkText } from "./chat_tokens.js";
import { byId, complain, describe, download, element, newSeed } from "./dom.js";
import { Refused } from "./files.js";
import { asLines, asThumb } from "./store.js";

const FIELDS = [
  ["temperature", "Temperature", "0 is greedy", 0, 2, 0.05],
  ["top_k", "Top-k", "0 is off", 0, 200, 1],
  ["top_p", "Top-p", "1 is off", 0.05, 1, 0.01],
  ["repetition_penalty", "Repetition penalty", "1 is off", 1, 2, 0.01],
  ["max_new_tokens", "Longest answer", "tokens", 1, 2048, 1],
  ["seed", "Seed", "-1 is a new one", -1, 2147483646, 1],
];

/** Read a number field, within its bounds. */
export function readNumber(field) {
  const value = Number(field.value);
  if (field.value === "" || !(value >= Number(field.min) && value <= Number(field.max))) {
    throw new Refused(`${field.dataset.name} is ${field.value || "empty"}; it must be a number from ${field.min} to ${field.max}.`);
  }
  return value;
}

export class Chat {
  constructor(app) {
    this.app = app;
    this.chats = app.store.read("chats");
    this.thumbs = app.store.read("thumbs");
    this.current = null;
    this.running = null;
    this.layOutSampling();
    this.open(this.chats[0] ?? this.fresh());
    byId("new-chat").onclick = () => this.open(this.fresh());
    byId("say").onsubmit = (event) => this.send(event);
    byId("stop").onclick = () => this.running?.abort();
    byId("download-thumbs").onclick = () => download("thumbs.jsonl", asLines(this.thumbs.map(({ row }) => row)));
    byId("forget-thumbs").onclick = () => this.forgetThumbs();
    const message = byId("message");
    message.onkeydown = (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) this.send(event);
      if (event.key === "Escape") this.running?.abort();
    };
    message.oninput = () => {
      message.style.height = "auto"; // style properties, unlike style attributes, are allowed by the page's policy
      message.style.height = `${message.scrollHeight + 2}px`;
    };
    message.value = (new URLSearchParams(location.search).get("prompt") ?? "").slice(0, 4000);
    message.oninput();
    this.showThumbs();
  }

  layOutSampling() {
    const { defaults, context } = this.app.manifest;
    const system = element("textarea", { id: "system", rows: 2, maxlength: 4000, placeholder: "Optional: who the model is, how it should answer." });
    byId("sampling").append(element("label", { class: "wide" }, "System prompt", system));
    system.oninput = () => {
      this.current.system = system.value;
      this.keep();
    };
    for (const [key, title, hint, min, max, step] of FIELDS) {
      const most = key === "max_new_tokens" ? Math.floor(context / 2) : max;
      const value = key === "seed" ? -1 : defaults[key];
      const field = element("input", { type: "number", id: key, min, max: Math.min(max, most), step, value, "data-name": title });
      byId("sampling").append(element("label", {}, title, field, element("small", {}, hint)));
    }
  }

  sampling() {
    return Object.fromEntries(FIELDS.map(([key]) => [key, readNumber(byId(key))]));
  }

  // ---- conversations ----

  fresh() {
    return { id: crypto.randomUUID(), system: this.current?.system ?? "", messages: [] };
  }

  open(chat) {
    this.running?.abort();
    this.current = chat;
    byId("system").value = chat.system;
    byId("status").textContent = "";
    this.show();
  }

  keep() {
    const others = this.chats.filter((chat) => chat !== this.current);
    this.chats = this.current.messages.length ? [this.current, ...others] : others;
    if (!this.app.store.write("chats", this.chats)) {
      byId("status").textContent = "This browser keeps nothing for this page: conversations end with it.";
    }
    this.showChats();
  }

  remove(chat) {
    this.chats = this.chats.filter((other) => other !== chat);
    this.app.store.write("chats", this.chats);
    if (chat === this.current) this.open(this.chats[0] ?? this.fresh());
    else this.showChats();
  }

  showChats() {
    byId("chats").replaceChildren(
      ...this.chats.map((chat) => {
        const title = chat.messages[0].content.slice(0, 60);
        const current = chat === this.current;
        return element(
          "li",
          {},
          element("button", { type: "button", title, "aria-current": current ? "true" : null, onclick: () => this.open(chat) }, title),
          element("button", { type: "button", "aria-label": `Delete the conversation: ${title}`, onclick: () => this.remove(chat) }, "×"),
        );
      }),
    );
  }

  show() {
    this.showChats();
    const { messages } = this.current;
    const log = byId("conversation");
    log.replaceChildren(...(messages.length ? messages.map((message, at) => this.turn(message, at)) : [this.welcome()]));
    log.scrollTop = log.scrollHeight;
  }

  welcome() {
    const examples = this.app.manifest.examples.map((text) =>
      element("button", { type: "button", onclick: () => this.answer(text) }, text),
    );
    return element(
      "div",
      { class: "welcome" },
      element("p", {}, "Write something, or begin with one of these:"),
      element("div", { class: "examples" }, ...examples),
    );
  }

  turn(message, at) {
    const last = at === this.current.messages.length - 1;
    const tool = (label, text, onclick, more = {}) =>
      element("button", { type: "button", "aria-label": label, title: label, onclick, ...more }, text);
    const tools = [];
    if (message.role === "user") tools.push(tool("Edit this message", "Edit", () => this.edit(at)));
    else if (!message.open) {
      tools.push(tool("Copy this answer", "Copy", () => navigator.clipboard?.writeText(message.content)));
      for (const [up, name] of [[true, "Good answer"], [false, "Bad answer"]]) {
        tools.push(tool(name, hand(up), () => this.thumb(at, up), { "aria-pressed": String(message.up === up) }));
      }
      if (last) tools.push(tool("Try this answer again", "Retry", () => this.retry()));
    }
    return element(
      "div",
      { class: `turn ${message.role}`, role: "group", "aria-label": message.role === "user" ? "You" : "The model" },
      element("div", { class: "text" }, message.content),
      element("div", { class: "tools" }, ...tools),
    );
  }

  // ---- answers ----

  send(event) {
    event.preventDefault();
    if (this.running) return;
    const text = byId("message").value;
    if (text.trim()) this.answer(text);
  }

  retry() {
    if (this.running) return;
    const said = this.current.messages.at(-2);
    this.current.messages.splice(-2);
    this.answer(said.content);
  }

  edit(at) {
    this.running?.abort();
    const [said] = this.current.messages.splice(at);
    const message = byId("message");
    message.value = said.content;
    message.oninput();
    this.keep();
    this.show();
    message.focus();
  }

  async answer(text) {
    if (this.running) return;
    complain("");
    const chat = this.current;
    try {
      const message = checkText(text, "The message");
      const system = checkText(chat.system, "The system prompt");
      const { seed: asked, ...sampling } = this.sampling();
      this.run = this.stream(chat, message, system, sampling, asked < 0 ? newSeed() : asked);
      await this.run;
    } catch (error) {
      this.app.fail(error);
    }
  }

  async stream(chat, message, system, sampling, seed) {
    const turns = pairs(chat.messages);
    const reply = { role: "assistant", content: "", open: true };
    const answered = chat.messages.length;
    this.running = new AbortController();
    chat.messages.push({ role: "user", content: message }, reply);
    if (byId("message").value.trim() === message) byId("message").value = "";
    byId("message").oninput();
    this.busy(true);
    this.show();
    const log = byId("conversation");
    const shown = log.lastChild.firstChild;
    try {
      byId("status").textContent = this.app.isReady() ? "" : "Your message is answered as soon as the model is here.";
      const [engine, tokens] = await Promise.all([this.app.engine(), this.app.tokens]);
      byId("status").textContent = "";
      const { ids, dropped } = tokens.fit(system, turns, message, sampling.max_new_tokens, engine.context);
      const update = (so_far) => {
        const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
        shown.textContent = tokens.decode(so_far).replace(/\uFFFD+$/, "");
        if (atEnd) log.scrollTop = log.scrollHeight;
      };
      const done = await engine.generate(ids, sampling, seed, update, this.running.signal);
      reply.content = tokens.decode(done.ids);
      reply.meta = { ...sampling, seed, model: this.app.manifest.source };
      delete reply.open;
      if (chat === this.current) byId("status").textContent = describe({ ...done, dropped });
    } catch (error) {
      chat.messages.splice(answered);
      byId("message").value ||= message;
      throw error;
    } finally {
      this.running = null;
      this.busy(false);
      this.keep();
      this.show();
    }
  }

  busy(on) {
    byId("send").hidden = on;
    byId("stop").hidden = !on;
    byId("conversation").setAttribute("aria-busy", String(on)); // read aloud once it is whole
  }

  // ---- thumbs ----

  thumb(at, up) {
    const { messages, system } = this.current;
    const answer = messages[at];
    const key = `${this.current.id} ${at}`;
    const others = this.thumbs.filter((thumb) => thumb.key !== key);
    answer.up = answer.up === up ? undefined : up;
    const before = messages.slice(0, at).map(({ role, content }) => ({ role, content }));
    const row = asThumb(system.trim(), before, answer.content, up, { ...answer.meta, time: new Date().toISOString() });
    this.thumbs = answer.up === undefined || !answer.content ? others : [...others, { key, row }];
    this.app.store.write("thumbs", this.thumbs);
    this.keep();
    this.show();
    this.showThumbs();
    byId("thumbs").open = this.thumbs.length > 0;
  }

  forgetThumbs() {
    this.thumbs = [];
    this.app.store.write("thumbs", []);
    for (const chat of this.chats) for (const message of chat.messages) delete message.up;
    this.app.store.write("chats", this.chats);
    this.show();
    this.showThumbs();
  }

  showThumbs() {
    const count = this.thumbs.length;
    byId("download-thumbs").textContent = count ? `Download my thumbs (${count})` : "Download my thumbs";
    for (const id of ["download-thumbs", "forget-thumbs"]) byId(id).disabled = !count;
  }
}

/** A hand with the thumb up or down, drawn: not every machine has the characters. */
function hand(up) {
  const shape = "M7 10v10H4V10zm2 0 4-7c1.7 0 2.6 1 2.3 2.6L14.7 9H19a2 2 0 0 1 2 2.4l-1.3 7A2 2 0 0 1 17.7 20H9z";
  const path = element("path", { d: shape, transform: up ? null : "rotate(180 12 12)" });
  return element("svg", { viewBox: "0 0 24 24", class: "hand", "aria-hidden": "true" }, path);
}

/** The questions that have an answer, each with it. */
function pairs(messages) {
  const found = [];
  for (let at = 0; at + 1 < messages.length; at += 2) {
    const turn = messages.slice(at, at + 2).map(({ role, content }) => ({ role, content }));
    if (turn.every((message) => message.content)) found.push(turn);
  }
  return found;
}
