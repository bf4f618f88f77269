// Trainings: where they run, how far they are, how well they go.

import { facts, h, parts, table } from "../dom.js";
import { plot } from "../plot.js";
import { duration, number, score, time } from "../text.js";

const COLOURS = { published: "good", failed: "bad", refused: "warn" };
const DRAWN = 6;

export function mount(root) {
  const told = facts();
  const curves = h("div", { class: "plots" });
  const devices = table("Devices", [
    { title: "device", cell: (d) => d.device }, { title: "running", number: true, cell: (d) => d.running }, { title: "done", number: true, cell: (d) => d.done },
  ], (d) => d.device);
  const listed = table("Jobs: those that run and wait, then the newest that are over", [
    { title: "job", cell: (j) => j.job_id },
    { title: "state", cell: (j) => h("span", { class: COLOURS[j.state] ?? "" }, j.state + (j.attempt > 1 ? `, attempt ${j.attempt}` : "")) },
    { title: "device", cell: (j) => j.device },
    { title: "progress", cell: (j) => (j.step === null ? "" : h("progress", { max: j.of, value: j.step, "aria-label": `${j.step} of ${j.of}` }, `${j.step}/${j.of}`)) },
    { title: "started, UTC", cell: (j) => (j.started_ms ? time(j.started_ms, { seconds: true }) : "") },
    { title: "took", number: true, cell: (j) => (j.started_ms && j.ended_ms ? duration(j.ended_ms - j.started_ms) : "") },
    { title: "left", number: true, cell: (j) => (j.remaining_s === null ? "" : duration(j.remaining_s * 1000)) },
    { title: "scores", cell: (j) => Object.entries(Object.keys(j.scores).length ? j.scores : j.metrics).map(([name, value]) => `${name} ${score(value)}`).join(", ") },
    { title: "why, or what came of it", cell: (j) => j.reason || j.why },
  ], (j) => j.job_id);
  root.append(told.element, h("h2", {}, "Curves"), curves, devices.element, listed.element);
  const draw = parts(curves, ({ job_id: id }) => {
    const drawn = plot(id, { x: "step", from0: false });
    return {
      element: drawn.element,
      destroy: drawn.destroy,
      set(job) {
        // Only the newest attempt: an earlier one went over the same steps.
        const at = job.curve.step.map((_, n) => n).filter((n) => job.curve.attempt[n] === job.attempt);
        drawn.set(at.map((n) => job.curve.step[n]), Object.entries(job.curve.metrics).map(([label, values]) => ({ label, values: at.map((n) => values[n]) })));
      },
    };
  });
  return {
    set(said) {
      told.set({ "asked for": number(said.requested), ...Object.fromEntries(Object.entries(said.states).map(([state, n]) => [state, number(n)])) });
      draw(said.jobs.filter((j) => j.curve.step.length > 0).slice(0, DRAWN), (j) => j.job_id);
      const used = new Map();
      for (const job of said.jobs.filter((j) => j.device)) {
        const known = used.get(job.device) ?? { device: job.device, running: 0, done: 0 };
        known[job.state === "running" ? "running" : "done"] += 1;
        used.set(job.device, known);
      }
      devices.set([...used.values()]);
      listed.set(said.jobs);
    },
  };
}
