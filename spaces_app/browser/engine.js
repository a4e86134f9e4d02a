// llama.cpp as WebAssembly, token ids in and token ids out.
//
// wllama takes prompts as text and finds control tokens in it, whoever wrote them. So in this page's GGUF each token is
// named by one character of Unicode's private planes, and a prompt is a string of these: no text of a person ever
// reaches the engine, and every token, a part of a character too, can be said and read.

import { LoggerWithoutDebug, Wllama } from "./vendor/wllama/index.js";
import { open, Refused } from "./files.js";

const PLANE = 0xfffe; // characters in a private plane: F0000 to FFFFD, then 100000 to 10FFFD
const name = (id) => String.fromCodePoint(id < PLANE ? 0xf0000 + id : 0x100000 + id - PLANE);
const number = (char) => (char.codePointAt(0) < 0x100000 ? char.codePointAt(0) - 0xf0000 : char.codePointAt(0) - 0x100000 + PLANE);
export const asText = (ids) => ids.map(name).join("");
export const asIds = (text) => Array.from(text, number);

const SMALL = 64e6; // bytes of weights under which dispatching to a GPU, or to threads, costs more than it saves
// Of github.com/GoogleChromeLabs/wasm-feature-detect (Apache-2.0): exceptions and SIMD, without which nothing runs.
const EXCEPTIONS = [0, 97, 115, 109, 1, 0, 0, 0, 1, 4, 1, 96, 0, 0, 3, 2, 1, 0, 10, 8, 1, 6, 0, 6, 64, 25, 11, 11];
const SIMD = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11];

/** Say in a sentence what this browser lacks; empty if nothing. */
export function missing() {
  const wasm = typeof WebAssembly === "object" && typeof WebAssembly.validate === "function";
  if (wasm && WebAssembly.validate(new Uint8Array(EXCEPTIONS)) && WebAssembly.validate(new Uint8Array(SIMD))) return "";
  return "This browser lacks the WebAssembly features that the model needs (SIMD and exceptions); open the page in a current Chrome, Edge, Firefox or Safari.";
}

/** Which build of the engine this browser needs: Safari, which has no stack switching yet, gets the compatible one. */
export function build(engine) {
  const firefox = /Firefox\//.test(navigator.userAgent); // whose 64-bit memory the plain build uses without switching
  return firefox || (WebAssembly.Suspending && hasLargeMemory()) ? { ...engine.default } : { ...engine.compat };
}

function hasLargeMemory() {
  try {
    return Boolean(new WebAssembly.Memory({ address: "i64", initial: 1n }));
  } catch {
    return false;
  }
}

export class Engine {
  /** Load a model of the manifest; `progress(bytes)` is told how many more have come. */
  static async load(manifest, model, progress) {
    const lacks = missing();
    if (lacks) throw new Refused(lacks);
    const parts = build(manifest.engine);
    const [wasm, worker, weights] = await Promise.all([
      open(parts.wasm, "application/wasm", progress),
      parts.worker ? open(parts.worker, "text/javascript", progress) : null,
      open(model, "application/octet-stream", progress),
    ]);
    const engine = new Engine();
    engine.context = manifest.context;
    engine.end = new Set(manifest.tokenizer.end);
    engine.never = manifest.tokenizer.never.map((id) => [id, false]);
    const gpu = model.bytes >= SMALL && Boolean(await navigator.gpu?.requestAdapter().catch(() => null));
    try {
      await engine.start(wasm, worker, weights, model, gpu);
    } catch (error) {
      await engine.wllama.exit().catch(() => {});
      if (!gpu) throw error;
      await engine.start(wasm, worker, weights, model, false); // a driver that does not work: the processor does
    }
    return engine;
  }

  async start(wasm, worker, weights, model, gpu) {
    const address = URL.createObjectURL(wasm);
    const quiet = { ...LoggerWithoutDebug, log() {}, warn() {} };
    this.wllama = new Wllama({ default: address }, { suppressNativeLog: true, logger: quiet });
    this.wllama.setCompat(worker ? { worker: { code: await worker.text() }, wasm: address } : null);
    await this.wllama.loadModel([weights], {
      n_ctx: this.context,
      n_parallel: 1,
      n_threads: model.bytes < SMALL ? 1 : undefined,
      n_gpu_layers: gpu ? 99999 : 0,
      cache_type_k: "f32",
      cache_type_v: "f32",
      cache_idle_slots: false, // copies of conversations that nobody goes back to would fill the memory
      flash_attn: false, // which rounds to 16 bits on the way, and is no faster for short texts
      warmup: false,
    });
    URL.revokeObjectURL(address);
    this.where = gpu ? "the graphics processor" : `${this.wllama.getNumThreads()} thread${this.wllama.getNumThreads() === 1 ? "" : "s"}`;
    this.queue = Promise.resolve();
  }

  /** Run one request after the other: the engine has one cache. One that failed does not work again. */
  turn(work) {
    const done = this.queue.then(work);
    this.queue = done.catch(() => {
      this.broken = true;
      return this.wllama.exit();
    });
    return done;
  }

  /**
   * Answer a prompt of token ids. `told(ids, done)` gets the answer so far; returns ids, times in seconds, and whether
   * it was stopped or cut.
   */
  generate(prompt, sampling, seed, told, signal) {
    const room = Math.min(sampling.max_new_tokens, this.context - prompt.length);
    return this.turn(async () => {
      const ids = [];
      const started = performance.now();
      let first = 0;
      let stopped = false;
      try {
        await this.wllama.createCompletion({
          ...this.drawing(sampling, seed),
          prompt: asText(prompt),
          max_tokens: room,
          stream: true,
          abortSignal: signal,
          onData: (chunk) => {
            const came = asIds(chunk.choices[0].text);
            if (!came.length) return;
            first ||= (performance.now() - started) / 1000;
            ids.push(...came);
            told(ids.filter((id) => !this.end.has(id)));
          },
        });
      } catch (error) {
        if (error.name !== "AbortError") throw error;
        stopped = true;
      }
      const ended = this.end.has(ids.at(-1));
      const seconds = (performance.now() - started) / 1000;
      const said = ended ? ids.slice(0, -1) : ids;
      return { ids: said, tokens: ids.length, first, seconds, seed, stopped, cut: !stopped && !ended && ids.length >= room };
    });
  }

  /** How the next token is drawn, in transformers' order and with its meaning of each setting. */
  drawing(sampling, seed) {
    return {
      samplers: ["penalties", "temperature", "top_k", "top_p"],
      temperature: sampling.temperature,
      top_k: sampling.top_k,
      top_p: sampling.top_p,
      repeat_penalty: sampling.repetition_penalty,
      repeat_last_n: this.context,
      seed,
      logit_bias: this.never,
    };
  }

  /** The likeliest tokens after `ids`, as [id, share]; with `next` its share too, however small it is. */
  expect(ids, count, next) {
    return this.turn(async () => {
      const answer = await this.wllama.createCompletion({
        prompt: asText(ids),
        max_tokens: 1,
        temperature: 0,
        samplers: ["temperature"],
        n_probs: count,
        logprobs: count,
        // The engine says the share, before any bias, of what it took; so it is made to take this one.
        logit_bias: next === undefined ? [] : [[next, 1e6]],
      });
      const found = answer.choices[0].logprobs.content[0];
      return { top: found.top_logprobs.map(({ id, logprob }) => [id, Math.exp(logprob)]), bits: -found.logprob / Math.LN2 };
    });
  }

  /** Shares of the likeliest tokens after `ids` as they are drawn from, after temperature and top-k, by id. */
  reshaped(ids, temperature, topK, count) {
    return this.turn(async () => {
      const answer = await this.wllama.createCompletion({
        prompt: asText(ids),
        max_tokens: 1,
        samplers: ["temperature", "top_k"],
        temperature,
        top_k: topK,
        n_probs: count,
        logprobs: count,
        post_sampling_probs: true,
      });
      const found = answer.choices[0].logprobs.content[0];
      return new Map((found.top_probs ?? found.top_logprobs).map((row) => [row.id, row.prob ?? Math.exp(row.logprob)]));
    });
  }
}
