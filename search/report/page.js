"use strict";
(() => {
  const trials = JSON.parse(document.getElementById("trials").textContent);
  const tip = document.getElementById("tip");
  const said = document.getElementById("said");
  const REACH = 12;
  let clear = 0;

  const say = (text) => {
    said.textContent = text;
    clearTimeout(clear);
    clear = setTimeout(() => { said.textContent = ""; }, 6000);
  };

  const copyByHand = (text) => {
    const field = document.createElement("textarea");
    const before = document.activeElement;
    field.value = text;
    document.body.append(field);
    field.select();
    let done = false;
    try { done = document.execCommand("copy"); } catch { done = false; }
    field.remove();
    if (before) before.focus({ preventScroll: true });
    return done;
  };

  const copy = async (command) => {
    let done = false;
    try {
      await navigator.clipboard.writeText(command);
      done = true;
    } catch {
      done = copyByHand(command);
    }
    say((done ? "Copied: " : "Cannot copy here; the command is: ") + command);
  };

  const row = (cells) => {
    const line = document.createElement("tr");
    cells.forEach((cell, place) => {
      const made = document.createElement(place ? "td" : "th");
      made.textContent = cell;
      line.append(made);
    });
    return line;
  };

  const table = (rows) => {
    const made = document.createElement("table");
    rows.forEach((cells) => made.append(row(cells)));
    return made;
  };

  const show = (mark) => {
    const trial = trials[mark.dataset.trial];
    if (!trial) return;
    const title = document.createElement("strong");
    title.textContent = trial.title;
    const parts = [title, table(trial.facts), table(trial.layers)];
    if (trial.more) {
      const more = document.createElement("div");
      more.textContent = trial.more;
      parts.push(more);
    }
    tip.replaceChildren(...parts);
    tip.hidden = false;
    const place = mark.getBoundingClientRect();
    const wide = document.documentElement.clientWidth;
    const left = Math.max(4, Math.min(place.right + 8, wide - tip.offsetWidth - 4));
    const below = place.bottom + 8;
    const fits = below + tip.offsetHeight < window.innerHeight;
    const top = fits ? below : Math.max(4, place.top - tip.offsetHeight - 8);
    tip.style.left = `${left + window.scrollX}px`;
    tip.style.top = `${top + window.scrollY}px`;
  };

  const hide = () => { tip.hidden = true; };
  const of = (trial) => document.querySelectorAll(`[data-trial="${CSS.escape(trial)}"]`);
  const light = (trial, on) => of(trial).forEach((one) => one.classList.toggle("on", on));

  // Points may lie closer to each other than a pointer is exact: the nearest one counts.
  const nearest = (event) => {
    let found = null;
    let least = REACH;
    event.currentTarget.querySelectorAll(".mark").forEach((mark) => {
      const box = mark.getBoundingClientRect();
      const across = event.clientX - (box.left + box.right) / 2;
      const distance = Math.hypot(across, event.clientY - (box.top + box.bottom) / 2);
      if (distance <= least) [found, least] = [mark, distance];
    });
    return found;
  };

  let shown = null;
  const point = (mark) => {
    if (mark === shown) return;
    if (shown) light(shown.dataset.trial, false);
    shown = mark;
    if (!mark) { hide(); return; }
    show(mark);
    light(mark.dataset.trial, true);
  };

  document.querySelectorAll(".plot svg").forEach((plot) => {
    plot.addEventListener("pointermove", (event) => {
      const mark = nearest(event);
      plot.classList.toggle("pointed", mark !== null);
      point(mark);
    });
    plot.addEventListener("pointerleave", () => point(null));
    plot.addEventListener("click", (event) => {
      const mark = nearest(event);
      point(mark);
      if (mark && trials[mark.dataset.trial]) copy(trials[mark.dataset.trial].command);
    });
  });
  document.querySelectorAll("tr[data-trial]").forEach((line) => {
    const trial = line.dataset.trial;
    for (const [name, on] of [["pointerenter", true], ["focusin", true], ["pointerleave", false], ["focusout", false]]) {
      line.addEventListener(name, () => light(trial, on));
    }
  });
  document.querySelectorAll("button[data-command]").forEach((button) => {
    button.hidden = false;
    button.addEventListener("click", () => copy(button.dataset.command));
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { point(null); said.textContent = ""; }
  });
})();
