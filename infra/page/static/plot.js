// Plots by uPlot: drawn in the theme's colours, as wide as their place, and with their numbers as a table.

import { h, table } from "./dom.js";
import { score, time } from "./text.js";

const HEIGHT = 210;
const NUMBERS = 15;
// Steps and versions are whole numbers: an axis has no 1.5 of them.
const WHOLE = Array.from({ length: 12 }, (_, power) => [1, 2, 5].map((n) => n * 10 ** power)).flat();
const drawings = new Set();
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// Times along the axis, as fine as the span asks for.
function ticks(drawn, splits) {
  const span = drawn.scales.x.max - drawn.scales.x.min;
  const [from, to] = span < 600_000 ? [11, 19] : span < 172_800_000 ? [11, 16] : [0, 10];
  return splits.map((ms) => time(ms, { seconds: true }).slice(from, to));
}

// The view that drew them is left.
export function clear() {
  for (const each of [...drawings]) each.destroy();
}

// A plot of series over x, where x is "time" (epoch ms) or the name of a number.
export function plot(title, { x = "time", bars = false, from0 = true, unit = "" } = {}) {
  const place = h("div");
  const numbers = h("details", {}, h("summary", {}, "As numbers"));
  const element = h("figure", { role: "group", "aria-label": title }, h("figcaption", {}, title, unit ? h("span", { class: "quiet" }, ` ${unit}`) : ""), place, numbers);
  let drawn = null, names = "", given = [[], []], listed = null;

  const shownX = (value) => (x === "time" ? time(value, { seconds: true }) : String(value));

  function draw() {
    drawn?.destroy();
    drawn = null;
    const [xs, series] = given;
    if (!xs.length || !place.clientWidth) return;
    const axis = { stroke: colour("--quiet"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line") } };
    drawn = new uPlot({
      width: place.clientWidth, height: HEIGHT, ms: 1, tzDate: (ms) => uPlot.tzDate(new Date(ms), "Etc/UTC"),
      scales: { x: { time: x === "time" }, y: { range: (_u, low, high) => low === null ? [0, 1] : uPlot.rangeNum(from0 ? Math.min(0, low) : low, high === low ? low + 1 : high, 0.1, true) } },
      axes: [x === "time" ? { ...axis, values: ticks, space: 90 } : { ...axis, incrs: WHOLE }, { ...axis, size: 60 }],
      series: [
        { label: x === "time" ? "UTC" : x, value: (_u, v) => (v === null ? "" : shownX(v)) },
        ...series.map((one, at) => ({
          label: one.label, stroke: colour(`--c${at % 8}`), width: one.dash ? 1 : 2, dash: one.dash ? [5, 4] : undefined,
          fill: bars ? colour(`--c${at % 8}`) : undefined, paths: one.marks ? () => null : bars ? uPlot.paths.bars({ size: [0.8, 60] }) : undefined,
          points: one.marks ? { show: true, size: 11, fill: colour(`--c${at % 8}`) } : { show: !bars && xs.length < 40 }, spanGaps: !one.marks, value: (_u, v) => (v === null ? "" : score(v)),
        })),
      ],
    }, [xs, ...series.map((one) => one.values)], place);
    // What it draws and what it says under the pointer stands in the table of numbers, for whoever cannot see it.
    for (const part of drawn.root.querySelectorAll("canvas, .u-legend")) part.setAttribute("aria-hidden", "true");
  }

  function list() {
    const [xs, series] = given;
    if (!numbers.open) return;
    const labels = series.map((one) => one.label).join("\n");
    if (!listed || listed.labels !== labels) {
      listed?.table.element.remove();
      const columns = [{ title: x === "time" ? "UTC" : x, cell: (at) => shownX(given[0][at]) },
        ...series.map((one, number) => ({ title: one.label, number: true, cell: (at) => score(given[1][number].values[at]) }))];
      listed = { labels, table: table(`${title}, the newest first`, columns, (at) => String(given[0][at])) };
      numbers.append(listed.table.element);
    }
    listed.table.set(xs.map((_, at) => at).slice(-NUMBERS).reverse());
  }

  numbers.addEventListener("toggle", list);
  const seen = new ResizeObserver(() => { if (!drawn) draw(); else if (drawn.width !== place.clientWidth) drawn.setSize({ width: place.clientWidth, height: HEIGHT }); });
  seen.observe(place);
  const themed = () => draw();
  document.addEventListener("theme", themed);

  const made = {
    element,
    set(xs, series) {
      given = [xs, series];
      const now = series.map((one) => one.label).join("\n");
      if (drawn && now === names && xs.length) drawn.setData([xs, ...series.map((one) => one.values)]);
      else { names = now; draw(); }
      list();
    },
    destroy() { drawings.delete(made); seen.disconnect(); document.removeEventListener("theme", themed); drawn?.destroy(); },
  };
  drawings.add(made);
  return made;
}
