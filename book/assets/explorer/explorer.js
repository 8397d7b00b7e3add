// What both explorers share: controls, the address, a line that says what is shown, pictures (by
// Observable Plot) and tables of their values. A page describes itself to `Explorer.start`:
//   controls: [{legend, controls: [{name, label, kind: "range" | "select" | "radio", start, ...}]}]
//   shown(state): {says: [text], nearest, pictures: [{title, note, label, plot(width), wide}],
//     tables: [{caption, head, rows}]}
// The state is what follows # in the address, so that a view can be linked.
const Explorer = (() => {
  const GREY = "#757575"; // as in tipmini_lab/book/figures.py
  const COVERED = 1.96; // standard errors to each side of a 95% interval
  const TOGETHER = 1000; // ms: steps of one control so close are one step of Back

  const element = (tag, attributes = {}, ...children) => {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  };

  // Numbers as the book writes them ---------------------------------------------------------------
  const fixed = (value, digits = 3) => value.toFixed(digits).replace("-", "−");
  const percent = (share) => `${Math.round(100 * share)}%`;
  const points = (share) => `${share > 0 ? "+" : ""}${fixed(100 * share, 1)}`;
  const threeDigits = (value) => {
    const rounded = Number(value.toPrecision(3));
    const digits = Math.max(0, 2 - Math.floor(Math.log10(Math.abs(rounded) || 1)));
    return rounded.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  };

  // A mean of accuracies with independent errors, and the bounds of its 95% interval.
  const interval = (...estimates) => {
    const mean = estimates.reduce((sum, [one]) => sum + one, 0) / estimates.length;
    const error = Math.hypot(...estimates.map(([, one]) => one)) / estimates.length;
    return { mean, low: mean - COVERED * error, high: mean + COVERED * error };
  };

  // Controls --------------------------------------------------------------------------------------
  const values = (control) => control.options.map(([value]) => value);

  const valid = (control, text) => {
    if (control.kind !== "range") return values(control).includes(text) ? text : control.start;
    if (text === null || text.trim() === "" || !Number.isFinite(Number(text))) return control.start;
    const steps = Math.round((Number(text) - control.min) / control.step);
    const value = Number((control.min + steps * control.step).toFixed(6));
    return Math.min(control.max, Math.max(control.min, value));
  };

  const range = (control) => {
    const { name, min, max, step } = control;
    const input = element("input", { type: "range", id: `explorer-${name}`, name, min, max, step });
    const output = element("output", { for: input.id });
    const label = element("label", { for: input.id }, control.label);
    return {
      node: element("div", { class: "explorer-control" }, label, output, input),
      set(value) {
        input.value = value;
        output.textContent = control.told(value);
        input.setAttribute("aria-valuetext", output.textContent);
      },
    };
  };

  const select = (control) => {
    const options = control.options.map(([value, text]) => element("option", { value }, text));
    const id = `explorer-${control.name}`;
    const input = element("select", { id, name: control.name }, ...options);
    const label = element("label", { for: id }, control.label);
    return {
      node: element("div", { class: "explorer-control" }, label, input),
      set(value) { input.value = value; },
    };
  };

  const radio = (control) => {
    const inputs = control.options.map(([value]) =>
      element("input", { type: "radio", name: control.name, value }));
    const labels = control.options.map(([, text], i) => element("label", {}, inputs[i], ` ${text}`));
    const legend = element("span", { id: `explorer-${control.name}` }, control.label);
    const group = { class: "explorer-control", role: "radiogroup", "aria-labelledby": legend.id };
    return {
      node: element("div", group, legend, ...labels),
      set(value) { inputs.forEach((input) => { input.checked = input.value === value; }); },
    };
  };

  const KINDS = { range, select, radio };

  // The address -----------------------------------------------------------------------------------
  const read = (controls) => {
    const told = new URLSearchParams(location.hash.slice(1));
    return Object.fromEntries(controls.map((one) => [one.name, valid(one, told.get(one.name))]));
  };

  const address = (state) => `#${new URLSearchParams(state)}`;

  // What is shown ---------------------------------------------------------------------------------
  const table = ({ caption, head, rows }) => {
    const line = (cells, tag) => cells.map((text, i) =>
      element(i ? tag : "th", i && tag === "td" ? {} : { scope: tag === "th" ? "col" : "row" }, text));
    const body = rows.map((row) => element("tr", {}, ...line(row, "td")));
    const made = element("table", { class: "table" }, element("caption", {}, caption),
      element("thead", {}, element("tr", {}, ...line(head, "th"))), element("tbody", {}, ...body));
    const place = { class: "pst-scrollable-table-container", tabindex: 0, role: "region", "aria-label": caption };
    return element("div", place, made);
  };

  const picture = ({ title, note, label, plot, wide }, width) => {
    const drawn = plot(width);
    drawn.setAttribute("role", "img");
    drawn.setAttribute("aria-label", label);
    drawn.removeAttribute("aria-description");
    // What the label says is not read out again, mark by mark.
    for (const part of drawn.children) part.setAttribute("aria-hidden", "true");
    const notes = note ? [element("p", { class: "explorer-note" }, note)] : [];
    return element("div", { class: `explorer-picture${wide ? " explorer-wide" : ""}` },
      element("p", { class: "explorer-title" }, title), drawn, ...notes);
  };

  // The label of an axis, in the middle below its numbers.
  const below = (label) => ({ label, labelAnchor: "center", labelArrow: "none", labelOffset: 38 });

  // Options of every plot: text is the page's colour, so that it follows light and dark.
  const plotted = (width, options) => Plot.plot({
    width,
    style: { fontSize: "12px", background: "none", overflow: "visible" },
    ...options,
  });

  function start(page) {
    const root = document.getElementById("explorer");
    const controls = page.controls.flatMap((group) => group.controls);
    const made = new Map(controls.map((one) => [one.name, KINDS[one.kind](one)]));
    const form = element("form", { class: "explorer-controls", "aria-label": "Settings" },
      ...page.controls.map((group) => element("fieldset", {}, element("legend", {}, group.legend),
        ...group.controls.map((one) => made.get(one.name).node))));
    const says = element("div", { class: "explorer-says", role: "status" });
    const pictures = element("div", { class: "explorer-pictures" });
    const tables = element("div");
    const details = element("details", {}, element("summary", {}, "The values shown, as tables"), tables);
    root.append(form, says, pictures, details);

    let state = read(controls);
    let drawnAt = 0;
    let waiting = 0;
    const last = { name: "", time: 0 };

    const draw = () => {
      waiting = 0;
      drawnAt = pictures.clientWidth;
      const shown = page.shown(state);
      made.forEach((one, name) => one.set(state[name]));
      says.replaceChildren(...shown.says.map((text) => element("p", {}, text)));
      if (shown.nearest) {
        const button = element("button", { type: "button" }, "Go to the nearest measured setting");
        button.addEventListener("click", () => { go({ ...state, ...shown.nearest }); form.elements[0].focus(); });
        says.append(button);
      }
      const columns = drawnAt >= 640 ? 2 : 1;
      pictures.style.setProperty("--columns", columns);
      const width = Math.floor((drawnAt - 24 * (columns - 1)) / columns);
      pictures.replaceChildren(...shown.pictures.map((one) => picture(one, one.wide ? drawnAt : width)));
      tables.replaceChildren(...shown.tables.map(table));
    };
    const soon = () => { waiting ||= requestAnimationFrame(draw); };
    const go = (next, how = "pushState") => {
      state = next;
      if (address(state) !== location.hash) history[how](null, "", address(state));
      draw();
    };

    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", (event) => {
      const control = controls.find((one) => one.name === event.target.name);
      state = { ...state, [control.name]: valid(control, event.target.value) };
      soon();
    });
    form.addEventListener("change", (event) => {
      const again = last.name === event.target.name && event.timeStamp - last.time < TOGETHER;
      Object.assign(last, { name: event.target.name, time: event.timeStamp });
      go(state, again ? "replaceState" : "pushState");
    });
    for (const moved of ["popstate", "hashchange"]) {
      window.addEventListener(moved, () => {
        // A heading's link has no settings: the view stays.
        if (location.hash && !location.hash.includes("=")) return;
        state = read(controls);
        soon();
      });
    }
    new ResizeObserver(() => { if (pictures.clientWidth !== drawnAt) soon(); }).observe(pictures);
    draw();
    // Only now: where this script fails, the picture that was drawn before stays.
    document.querySelectorAll(".explorer-static").forEach((one) => one.remove());
  }

  return { start, plotted, below, interval, fixed, percent, points, threeDigits, GREY };
})();
