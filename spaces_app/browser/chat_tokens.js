// How a conversation becomes token ids: as the model's chat template renders it, with what people write as plain text.
//
// The same rule as `apply_chat_template(..., sanitize_control_tokens=True)` of transformers: control tokens that a
// message spells are marked before the template sees them, and marked ones are encoded as text.

import { Template } from "./vendor/jinja/index.js";
import { Tokenizer } from "./vendor/tokenizers/index.js";
import { Refused } from "./files.js";

const START = "\u{F0000}";
const END = "\u{F0001}";
const MARKS = new RegExp(`[${START}${END}]`, "gu");
const LONE = /[\uD800-\uDBFF](?![\uDC00-\uDFFF])|(?<![\uD800-\uDBFF])[\uDC00-\uDFFF]/;

const anyOf = (tokens) =>
  [...tokens].sort((a, b) => b.length - a.length).map((token) => token.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("|") || "(?!)";

export class ChatTokens {
  /** `about` is the manifest's `tokenizer`: chat_template, special (by role), control, end, bos. */
  constructor(tokenizerJson, tokenizerConfig, about) {
    const added = tokenizerJson.added_tokens.map((token) => token.content);
    this.tokenizer = new Tokenizer(tokenizerJson, tokenizerConfig);
    this.plain = new Tokenizer({ ...tokenizerJson, added_tokens: [] }, {}); // to it every text is text
    this.about = about;
    this.template = new Template(about.chat_template);
    this.control = new RegExp(anyOf(about.control), "gu");
    this.marked = new RegExp(`${START}(${anyOf(added)})${END}|[${START}${END}]`, "u");
    this.line = this.tokenizer.encode("\n", { add_special_tokens: false }).ids;
    this.check();
  }

  /** Refuse to work if the conversations that came along do not become the tokens that transformers makes of them. */
  check() {
    for (const { messages, ids } of this.about.checks) {
      if (String(this.encode(messages)) !== String(ids)) {
        throw new Refused("This page reads text into other tokens than the model was trained with, so it cannot talk with it here.");
      }
    }
  }

  /** Encode a conversation up to where the assistant's next answer begins. */
  encode(messages) {
    const shown = messages.map(({ role, content }) => ({ role, content: this.mark(content) }));
    let text;
    try {
      text = this.template.render({ ...this.about.special, messages: shown, add_generation_prompt: true });
    } catch (error) {
      throw new Refused(`The model's chat template refuses this: ${error.message}.`);
    }
    // Pieces are text, marked token, text, marked token, ...; a lone mark gives undefined for the token.
    return text.split(this.marked).flatMap((piece, at) => (piece ? this.encodePiece(piece, at) : []));
  }

  mark(text) {
    return text.replace(MARKS, "").replace(this.control, `${START}$&${END}`);
  }

  encodePiece(piece, at) {
    const tokenizer = at % 2 ? this.plain : this.tokenizer;
    const encode = (text) => tokenizer.encode(text, { add_special_tokens: false }).ids;
    if (at === 0) return encode(piece);
    const ids = encode(`\n${piece}`); // some tokenizers put a space before a text; after a line break they do not
    return this.line.every((id, place) => ids[place] === id) ? ids.slice(this.line.length) : encode(piece);
  }

  /** Encode a text as it stands, behind the token with which a text begins, if there is one. */
  encodeText(text) {
    const ids = this.plain.encode(text.replace(MARKS, ""), { add_special_tokens: false }).ids;
    return this.about.bos === null ? ids : [this.about.bos, ...ids];
  }

  /** The text of an answer. */
  decode(ids) {
    return ids.length ? this.tokenizer.decode(ids, { skip_special_tokens: true, clean_up_tokenization_spaces: false }) : "";
  }

  /** The text of one token, to be looked at; a part of a character is written as its bytes. */
  piece(id) {
    const token = this.tokenizer.id_to_token?.(id) ?? this.plain.id_to_token?.(id) ?? String(id);
    const text = this.tokenizer.decode([id], { skip_special_tokens: false, clean_up_tokenization_spaces: false });
    return text.includes("\uFFFD") || !text ? `⟨${token}⟩` : text.replaceAll("\n", "⏎").replaceAll("\t", "⇥");
  }

  /**
   * Encode a conversation so that `room` tokens are left for the answer, without the oldest turns if need be.
   * Returns ids, and how many turns were left out.
   */
  fit(system, turns, message, room, context) {
    const before = system ? [{ role: "system", content: system }] : [];
    const last = { role: "user", content: message };
    let ids;
    for (let dropped = 0; dropped <= turns.length; dropped += 1) {
      ids = this.encode([...before, ...turns.slice(dropped).flat(), last]);
      if (ids.length + room <= context) return { ids, dropped };
    }
    if (ids.length + 16 > context) {
      throw new Refused(`Message and system prompt have ${ids.length} tokens; the model reads ${context}, its answer included. Shorten them.`);
    }
    return { ids, dropped: turns.length };
  }
}

/** Return a text without space around it, or refuse it. */
export function checkText(text, what) {
  if (text.length > 4000) throw new Refused(`${what} has ${text.length} characters; 4000 is the most. Shorten it.`);
  if (LONE.test(text)) throw new Refused(`${what} holds half of a character (a lone surrogate); remove it.`);
  return text.trim();
}
