// The page `Training`: curves, results and facts, out of the record that the release carries. Nothing is computed here.

import { byId, element } from "./dom.js";

const STAGES = { pretrain: "Pretraining", sft: "Fine-tuning (SFT)", dpo: "Preferences (DPO)", grpo: "Reinforcement (GRPO)" };
// Title, unit, and the keys of metrics.jsonl with the names of their lines.
const CURVES = [
  ["Loss", "nats a token", { train_loss: "training", val_loss: "held-out" }],
  ["Loss", "", { loss: "training", eval_loss: "held-out" }],
  ["Bits per byte", "held-out text", { val_bpb: "held-out" }],
  ["Reward", "sum of the checkers", { reward: "training" }],
  ["Reward margin", "of the chosen", { "rewards/margins": "training", "eval_rewards/margins": "held-out" }],
  ["Pairs ranked right", "share", { "rewards/accuracies": "training", "eval_rewards/accuracies": "held-out" }],
  ["Learning rate", "", { lr: "training" }],
];
const RATES = {
  followed: "Instruction followed",
  ended: "Ended by itself",
  followed_sampled: "Instruction followed, sampled",
  happy: "Preferred ending, sampled",
  happy_of_followed: "Preferred ending of those that followed",
};
const TURNS = {
  questions: "Questions about a story answered",
  again: "Told again with the other ending",
  next: "The next story followed",
  open: "Open request followed",
  "small talk": "Honest where no story was asked for",
};
const SETTINGS = ["learning_rate", "schedule", "optimizer", "batch_rows", "batch_size", "prompts_per_step", "num_generations", "epochs", "beta", "tune", "seed"];

export function showTraining(record) {
  const page = byId("page-training");
  if (!record) {
    page.replaceChildren(element("p", {}, "This model was published without a training record."));
    return;
  }
  page.replaceChildren(...results(record.results.models ?? {}), ...Object.entries(STAGES).flatMap(([name, title]) => curves(title, record.stages[name])), facts(record.stages));
}

function results(models) {
  const found = Object.values(models);
  const rows = [["Bits per byte, held-out text", found.map((model) => model.text?.bits_per_byte.toFixed(4) ?? "")]];
  for (const [key, title] of Object.entries(RATES)) rows.push([title, found.map((model) => interval(model.stories?.[key]))]);
  for (const [key, title] of Object.entries(TURNS)) rows.push([title, found.map((model) => interval(model.turns?.greedy?.[key]))]);
  const asked = found.map((model) => model.questions?.greedy ?? {});
  for (const kind of new Set(asked.flatMap(Object.keys))) rows.push([`Questions: ${kind}`, asked.map((one) => interval(one[kind]))]);
  const shown = rows.filter(([, cells]) => cells.some(Boolean)).map(([title, cells]) => [title, ...cells]);
  return shown.length ? [table("Results, with 95 % intervals", ["", ...Object.keys(models)], shown, "figures")] : [];
}

function interval(rate) {
  if (!rate) return "";
  if (rate.rate === null) return "none";
  const [value, low, high] = [rate.rate, rate.low, rate.high].map((share) => (100 * share).toFixed(1));
  return `${value} % (${low} to ${high})`;
}

function facts(stages) {
  const rows = Object.entries(stages).map(([name, { stage }]) => {
    const settings = SETTINGS.filter((key) => stage.config?.[key] !== undefined && stage.config[key] !== null);
    return [name, `${Math.round(stage.seconds ?? 0).toLocaleString("en")} s`, data(name, stage.metrics ?? {}), settings.map((key) => `${key} ${stage.config[key]}`).join(", ")];
  });
  return table("Data and settings of each stage", ["Stage", "Time", "Data", "Settings"], rows, "figures facts");
}

function data(name, metrics) {
  const count = (number) => number.toLocaleString("en");
  if (name === "data" && metrics.train) return `${count(metrics.train.documents)} documents, ${count(metrics.train.tokens)} tokens, ${count(metrics.train.bytes)} bytes`;
  return metrics.rows && metrics.tokens ? `${count(metrics.rows)} rows, ${count(metrics.tokens)} tokens` : "";
}

function table(caption, header, rows, name) {
  return element(
    "div",
    { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    element(
      "table",
      { class: name },
      element("caption", {}, caption),
      element("thead", {}, element("tr", {}, ...header.map((cell) => element("th", { scope: "col" }, cell)))),
      element("tbody", {}, ...rows.map(([first, ...rest]) => element("tr", {}, element("th", { scope: "row" }, first), ...rest.map((cell) => element("td", {}, cell))))),
    ),
  );
}

function curves(title, stage) {
  const plots = CURVES.flatMap(([name, unit, keys]) => {
    const lines = Object.entries(keys)
      .map(([key, line]) => [line, (stage?.metrics ?? []).filter((row) => typeof row[key] === "number").map((row) => [row.step, row[key]])])
      .filter(([, points]) => points.length > 1); // one point is no line
    return lines.length ? [plot(unit ? `${name} (${unit})` : name, `${title}: ${name}`, lines)] : [];
  });
  return plots.length ? [element("h2", {}, title), element("div", { class: "plots" }, ...plots)] : [];
}

const [WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT] = [320, 180, 44, 24, 8, 10];

function plot(caption, label, lines) {
  const all = lines.flatMap(([, points]) => points);
  const [x0, x1] = bounds(all.map(([x]) => x));
  const [y0, y1] = bounds(all.map(([, y]) => y));
  const x = (value) => LEFT + ((value - x0) / (x1 - x0)) * (WIDTH - LEFT - RIGHT);
  const y = (value) => HEIGHT - BOTTOM - ((value - y0) / (y1 - y0)) * (HEIGHT - BOTTOM - TOP);
  const marks = [0, 0.5, 1].flatMap((part) => {
    const value = y0 + part * (y1 - y0);
    return [
      element("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) }),
      element("text", { x: LEFT - 5, y: y(value) + 3, "text-anchor": "end" }, short(value)),
    ];
  });
  marks.push(
    element("text", { x: LEFT, y: HEIGHT - 8 }, x0.toLocaleString("en")),
    element("text", { x: WIDTH - RIGHT, y: HEIGHT - 8, "text-anchor": "end" }, `step ${x1.toLocaleString("en")}`),
  );
  const color = (name, at) => (name === "held-out" || at ? "second" : "first");
  const paths = lines.map(([name, points], at) => element("path", { class: color(name, at), d: points.map(([px, py], i) => `${i ? "L" : "M"}${x(px).toFixed(1)} ${y(py).toFixed(1)}`).join("") }));
  const legend = lines.map(([name], at) => element("span", { class: color(name, at) }, `— ${name}`));
  const last = lines.map(([name, points]) => `${name} ends at ${Number(points.at(-1)[1].toPrecision(4))}`).join(", ");
  return element(
    "figure",
    {},
    element("figcaption", {}, caption),
    element("svg", { class: "plot", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${label}: ${last}` }, ...marks, ...paths),
    element("p", { class: "legend" }, ...legend),
  );
}

/** A number in at most five characters or so, as 0.413 or 2.9e-4. */
const short = (value) => (value && Math.abs(value) < 0.01 ? value.toExponential(1) : Number(value.toPrecision(3)).toString());

function bounds(values) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  return low === high ? [low - 1, high + 1] : [low, high];
}
