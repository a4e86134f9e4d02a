// What the reader's own browser keeps: conversations, pairs and thumbs. Nothing of it is sent anywhere.

const memory = new Map(); // where the browser keeps nothing, as in some private windows

export class Store {
  constructor(name) {
    this.name = name;
  }

  read(key) {
    try {
      return JSON.parse(localStorage.getItem(`${this.name}: ${key}`)) ?? [];
    } catch {
      return memory.get(key) ?? [];
    }
  }

  /** Keep rows; true if they will be there after a reload. */
  write(key, rows) {
    memory.set(key, rows);
    try {
      localStorage.setItem(`${this.name}: ${key}`, JSON.stringify(rows));
      return true;
    } catch {
      return false;
    }
  }
}

/** Rows as JSON lines in ASCII: some readers of lines break them at Unicode's separators, too. */
export const asLines = (rows) =>
  rows.map((row) => `${JSON.stringify(row).replace(/[\u0080-\uffff]/g, (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, "0")}`)}\n`).join("");

const said = (role, content) => ({ role, content });

/** A preference pair, as `training.dpo` reads it. */
export const asPair = (system, prompt, chosen, rejected, meta) => ({
  prompt: [...(system ? [said("system", system)] : []), said("user", prompt)],
  chosen: [said("assistant", chosen)],
  rejected: [said("assistant", rejected)],
  meta,
});

/** A thumb on an answer, as `training.dpo` reads it (KTO). */
export const asThumb = (system, before, answer, up, meta) => ({
  prompt: [...(system ? [said("system", system)] : []), ...before],
  completion: [said("assistant", answer)],
  label: up,
  meta,
});
