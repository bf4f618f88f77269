// What was refused, with its bytes and the reason; after a fix it can be pushed to its topic again.

import { facts, h, table } from "../dom.js";
import { bytes, number, time } from "../text.js";

export function mount(root) {
  const told = facts();
  const chosen = new Set();
  let letters = [];
  const push = h("button", { type: "button", id: "redrive", disabled: true, onclick: redrive }, "Push the chosen again");
  const every = h("button", { type: "button", onclick: all }, "Choose all that wait");
  const answer = h("p", { role: "status", id: "answer" });
  const rules = table("By rule", [
    { title: "rule", cell: (r) => r.rule }, { title: "letters", number: true, cell: (r) => number(r.count) },
  ], (r) => r.rule);
  const listed = table("The newest letters", [
    { title: "choose", cell: box },
    { title: "from", cell: (l) => `${l.topic}, partition ${l.partition}, offset ${l.offset}${l.row ? `, row ${l.row}` : ""}` },
    { title: "at, UTC", cell: (l) => (l.at_ms < 0 ? "" : time(l.at_ms, { seconds: true })) },
    { title: "reason", cell: (l) => h("span", {}, h("strong", {}, l.reason.replaceAll("_", " ")), h("br"), l.rule) },
    { title: "what was wrong, and its bytes", cell: content },
    { title: "pushed again", cell: (l) => (l.redriven ? h("span", { class: "good" }, `to offset ${l.redriven.offset}`) : "") },
  ], (l) => l.id);
  root.append(told.element, rules.element, h("p", {}, every, " ", push), answer, listed.element);

  function box(letter) {
    // One element a letter: its tick is the reader's, and no event takes it away.
    const known = document.querySelector(`input[data-letter="${CSS.escape(letter.id)}"]`);
    if (known) return known;
    return h("input", { type: "checkbox", "data-letter": letter.id, "aria-label": `Choose ${letter.topic} ${letter.partition} ${letter.offset}`,
      onchange: (event) => { if (event.target.checked) chosen.add(letter.id); else chosen.delete(letter.id); count(); } });
  }

  function content(letter) {
    const size = letter.size_bytes === null ? "its bytes are not in the letter" : `${bytes(letter.size_bytes)}${letter.form === "hex" ? ", as hexadecimal" : ""}`;
    return h("div", {}, letter.detail, h("pre", { tabindex: 0, "aria-label": `Bytes: ${size}` }, letter.bytes), h("span", { class: "quiet" }, size + (letter.key ? `, key ${letter.key}` : "")));
  }

  function count() {
    push.disabled = chosen.size === 0;
    push.textContent = chosen.size ? `Push the chosen ${chosen.size} again` : "Push the chosen again";
  }

  function all() {
    for (const letter of letters) if (!letter.redriven) chosen.add(letter.id);
    for (const each of root.querySelectorAll("input[data-letter]")) each.checked = chosen.has(each.dataset.letter);
    count();
  }

  async function redrive() {
    push.disabled = true;
    answer.textContent = "pushing …";
    try {
      const got = await fetch("/api/redrive", { method: "POST", headers: { "Content-Type": "application/json", "X-Tidemill": "page" }, body: JSON.stringify({ ids: [...chosen] }) });
      const said = await got.json();
      const failed = (said.letters ?? []).filter((each) => each.error);
      const done = (said.letters ?? []).length - failed.length;
      answer.textContent = said.error ?? `${done} pushed again${failed.length ? `; ${failed.length} not: ${failed[0].error}` : ""}`;
      for (const each of said.letters ?? []) if (!each.error) chosen.delete(each.id);
      for (const each of root.querySelectorAll("input[data-letter]")) each.checked = chosen.has(each.dataset.letter);
    } catch (error) {
      answer.textContent = `the page's server did not answer: ${error.message}; see below what was pushed again`;
    }
    count();
  }

  return {
    set(said) {
      letters = said.letters;
      told.set({ letters: number(said.total), ...Object.fromEntries(Object.entries(said.by_reason).map(([reason, n]) => [reason.replaceAll("_", " "), number(n)])) });
      rules.set(Object.entries(said.by_rule).map(([rule, count]) => ({ rule, count })));
      listed.set(said.letters);
    },
  };
}
