"use strict";
// The chart below the picture: how much has been seen, and when something went wrong.

const LEVELS = [0.9, 0.95]; // lines across the chart
const EVENT_ROWS = [
  // name of the count, short word, colour of the theme
  ["lost", "lost", "soft"],
  ["buildingHits", "hits", "building-hit"],
  ["conflicts", "conflicts", "conflict"],
  ["violations", "no-fly", "violation"],
];
const percent = (share) => `${(100 * share).toFixed(1)}\u00a0%`;

// The first step with so much seen, or null.
function stepOf(episode, level) {
  const step = episode.coverage.findIndex((share) => share >= Math.fround(level));
  return step < 0 ? null : step;
}

// Draws the chart for its present size. Each row of ticks holds one line per view, in its colour.
function drawTimeline(views, lastStep, theme) {
  const svg = document.getElementById("chart");
  const { width, height } = svg.getBoundingClientRect();
  const small = width < 600;
  const left = small ? 44 : 62,
    right = 12,
    top = 5;
  const rows = EVENT_ROWS.filter(
    ([name]) =>
      name === "lost" || views.some(({ episode }) => episode.counts[name][episode.length]),
  );
  const row = small ? 9 : 11,
    bottom = height - rows.length * row - 5;
  const across = (step) => left + (lastStep ? (step / lastStep) * (width - left - right) : 0);
  const up = (share) => bottom - share * (bottom - top);
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.replaceChildren();
  const add = (kind, attributes, words) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", kind);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    if (words) node.textContent = words;
    svg.append(node);
  };
  const word = (words, y) =>
    add("text", { x: left - 6, y, "text-anchor": "end", class: "word" }, words);
  word("95 %", up(0.95) + 1);
  word("90 %", up(0.9) + 9);
  word("seen", up(0.9) + 22);
  for (const level of LEVELS)
    add("line", { x1: left, x2: width - right, y1: up(level), y2: up(level), class: "level" });
  add("line", { x1: left, x2: width - right, y1: bottom, y2: bottom, class: "axis" });
  rows.forEach(([name, words, colour], number) => {
    const start = bottom + 3 + number * row;
    word(words, start + row - 2);
    views.forEach(({ episode, colour: own }, view) => {
      const tall = (row - 2) / views.length;
      const fill = theme[views.length > 1 ? own : colour];
      drawTicks(add, episode, name, across, start + view * tall, tall - 0.5, fill);
    });
  });
  for (const { episode, colour } of views) drawCurve(add, episode, across, up, theme[colour]);
  const timeline = document.getElementById("timeline");
  timeline.style.setProperty("--left", `${left}px`);
  timeline.style.setProperty("--right", `${right}px`);
}

// A tick for every step in which something is counted.
function drawTicks(add, episode, name, across, y, height, fill) {
  const run = episode.counts[name];
  const width = Math.max(1.5, Math.min(4, across(1) - across(0) - 0.5));
  for (let step = 1; step <= episode.length; step++) {
    const count = run[step] - run[step - 1];
    if (!count) continue;
    // Lost commands are many: a tick is the darker the larger the share of the swarm.
    const opacity = name === "lost" ? Math.min(1, 0.25 + count / episode.drones) : 1;
    add("rect", { x: across(step) - width / 2, y, width, height, fill, opacity });
  }
}

// How much has been seen by each step, with a dot where a level is reached.
function drawCurve(add, episode, across, up, stroke) {
  const points = Array.from(
    episode.coverage,
    (share, step) => `${across(step).toFixed(1)},${up(share).toFixed(1)}`,
  );
  add("polyline", { points: points.join(" "), stroke });
  for (const level of LEVELS) {
    const step = stepOf(episode, level);
    if (step === null) continue;
    add("circle", { cx: across(step), cy: up(episode.coverage[step]), r: 3, fill: stroke });
  }
}

// What is known of a step, for the tip under the pointer.
function stepWords(views, step) {
  const events = [
    ["lost", "command lost", "commands lost"],
    ["buildingHits", "building hit", "building hits"],
    ["conflicts", "conflict", "conflicts"],
    ["violations", "no-fly entry tried", "no-fly entries tried"],
  ];
  const lines = views.map(({ episode, name }) => {
    const at = Math.min(step, episode.length);
    const words = [`${percent(episode.coverage[at])} seen`];
    for (const [count, one, more] of events) {
      const happened =
        step < 1 || step > episode.length
          ? 0
          : episode.counts[count][at] - episode.counts[count][at - 1];
      if (happened) words.push(`${happened} ${happened === 1 ? one : more}`);
    }
    if (step > episode.length) words.push("over");
    return `${views.length > 1 ? `${name}: ` : ""}${words.join(", ")}`;
  });
  return [`step ${step}`, ...lines];
}
