// How fast events come in, how many wait, and how far event time is complete: by partition.

import { facts, h, parts, table } from "../dom.js";
import { plot } from "../plot.js";
import { duration, number, time } from "../text.js";

export function mount(root) {
  const alerts = h("div", { role: "alert" });
  root.append(alerts);
  const show = parts(root, pipeline);
  return {
    set(said) {
      const wanted = JSON.stringify(said.alerts);
      if (alerts.dataset.said !== wanted) {
        alerts.dataset.said = wanted;
        alerts.replaceChildren(...said.alerts.map((alert) => h("div", { class: "alert" },
          h("strong", {}, `${alert.pipeline} has stopped: ${alert.kind.replaceAll("_", " ")}`), h("p", {}, alert.detail),
          h("ul", {}, ...alert.choices.map((choice) => h("li", {}, choice))))));
      }
      show(said.pipelines);
    },
  };
}

function pipeline({ name }) {
  const told = facts();
  const rates = plot("Events committed a second", { unit: "by source" });
  const partitions = table("Partitions", [
    { title: "source", cell: (p) => p.topic },
    { title: "partition", number: true, cell: (p) => p.partition },
    { title: "events/s", number: true, cell: (p) => number(p.rate) },
    { title: "lag, events", number: true, cell: (p) => (p.lag === null ? "unknown" : number(p.lag)) },
    { title: "next offset", number: true, cell: (p) => number(p.next) },
    { title: "watermark, UTC", cell: (p) => time(p.watermark_ms) },
    { title: "behind the first", number: true, cell: (p) => p.behind },
    { title: "state", cell: (p) => (p.idle ? "idle" : "") },
  ], (p) => `${p.topic}/${p.partition}`);
  return {
    element: h("section", { "data-pipeline": name }, h("h2", {}, name), told.element, h("div", { class: "plots" }, rates.element), partitions.element),
    set(said) {
      const marks = said.partitions.map((p) => p.watermark_ms).filter((ms) => ms !== null);
      const first = marks.length ? Math.max(...marks) : 0;
      const lags = said.partitions.map((p) => p.lag);
      told.set({
        "events/s": number(said.partitions.reduce((sum, p) => sum + p.rate, 0)),
        "lag, events": lags.includes(null) ? "unknown" : number(lags.reduce((a, b) => a + b, 0)),
        "watermark, UTC": time(said.watermark_ms) || "none yet",
        "events committed": number(said.events),
        "dataset version": number(said.dataset_version),
      });
      rates.set(said.at_ms, Object.entries(said.rates).map(([label, values]) => ({ label, values })));
      partitions.set(said.partitions.map((p) => ({ ...p, behind: p.watermark_ms === null ? "" : duration(first - p.watermark_ms) })));
    },
  };
}
