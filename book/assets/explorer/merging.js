// The explorer of merging: what TIP prunes of one adapter at a setting, and what was measured of a
// merge at it. Nothing measured is ever drawn between two settings: the nearest one is named.
(() => {
  const { plotted, interval, fixed, percent, points, threeDigits, GREY } = Explorer;
  const { tasks, methods, profiles, shapes, rank, weights, start, colours } = EXPLORER_DATA;
  const names = Object.keys(tasks);
  const SIGNS = { 1: "as written", "-1": "inverted" };
  const first = (options) => options[0][0];

  const adapter = [
    { name: "task", label: "Adapter of", kind: "select",
      options: names.map((name) => [name, tasks[name].title]) },
    { name: "s", label: "S_org", kind: "range", min: 0, max: 0.95, step: 0.05, start: start.sparsity,
      told: (value) => value.toFixed(2) },
    { name: "sign", label: "Sign (Eq. 5)", kind: "radio", start: "1",
      options: [["1", "as written"], ["-1", "inverted"]] },
    { name: "range", label: "Shift range", kind: "range", min: 0, max: 1, step: 0.1, start: 1,
      told: (value) => value.toFixed(1) },
  ];
  const merge = [
    { name: "method", label: "Method", kind: "select",
      options: Object.entries(methods).map(([name, { title }]) => [name, title]) },
    { name: "n", label: "Adapters", kind: "range", min: 2, max: names.length, step: 1,
      start: names.length, told: (value) => `the first ${value}` },
    { name: "w", label: "Weight of each", kind: "select", start: "sum",
      options: weights.map(({ name, told }) => [name, told]) },
    { name: "rows", label: "Measured on", kind: "radio",
      options: Object.keys(profiles).map((name) => [name, name]) },
  ];
  for (const one of [...adapter, ...merge]) one.start ??= first(one.options);

  // What is measured -------------------------------------------------------------------------------
  const weightOf = ({ w, n }) => weights.find(({ name }) => name === w).of[n];

  // How a stored merge differs from what is asked for: a number for each setting, 0 where alike.
  const apart = (stored, state) => {
    const far = [Math.abs(stored.adapters - state.n) / names.length,
      Math.abs(Math.log(stored.weight / weightOf(state)))];
    if (methods[state.method].layerwise) {
      far.push(Math.abs(stored.sparsity - state.s), Math.abs(stored.range - state.range));
      // Without a shift there is no sign.
      if (stored.range || state.range) far.push(Number(stored.sign !== Number(state.sign)));
    }
    return far.map((one) => (one < 1e-4 ? 0 : one));
  };

  // The stored merge that differs in the fewest settings, and of several by least.
  const found = (state) => {
    const own = profiles[state.rows].merges.filter(({ method }) => method === state.method);
    const ranked = own.map((stored) => {
      const far = apart(stored, state);
      return { stored, count: far.filter(Boolean).length, sum: far.reduce((a, b) => a + b, 0) };
    });
    ranked.sort((a, b) => a.count - b.count || a.sum - b.sum);
    return ranked.length ? { merge: ranked[0].stored, exact: !ranked[0].count } : null;
  };

  const weightName = (merge) =>
    weights.find(({ of }) => Math.abs(of[merge.adapters] - merge.weight) < 1e-4)?.name;

  // The state of a stored merge, as far as it has the settings.
  const stateOf = (merge) => ({ n: merge.adapters, w: weightName(merge),
    ...(merge.sparsity === null ? {} : { s: merge.sparsity, sign: `${merge.sign}`, range: merge.range }) });

  const told = (method, { s, sign, range, n, w }) => [
    methods[method].title,
    ...(methods[method].layerwise && s !== undefined
      ? [`S_org ${fixed(s, 2)}`, `sign ${SIGNS[sign]}`, `shift range ${fixed(range, 1)}`] : []),
    `${n} adapters`, `weight ${weights.find(({ name }) => name === w)?.told}`,
  ].join(", ");

  // Words ------------------------------------------------------------------------------------------
  const bounds = ({ low, high }, form = fixed) => `${form(low)} to ${form(high)}`;

  const layersSaid = ({ task, s, sign, range }, layers) => {
    const { most, sparsity, kept, norm, before } = layers;
    return `TIP on the adapter of ${tasks[task].title} at S_org ${fixed(s, 2)}, sign ${SIGNS[sign]}, ` +
      `shift range ${fixed(range, 1)}: the most important layer, ${most}, has sparsity ` +
      `${fixed(sparsity[most], 2)}. Of all layers' elements ${percent(kept.mean)} are kept; the norm ` +
      `of the update goes from ${threeDigits(before.whole)} to ${threeDigits(norm.whole)}.`;
  };

  const mergeSaid = (state, answer) => {
    if (!answer) return `${methods[state.method].title} is not measured at ${state.rows}.`;
    const { merge, exact } = answer;
    const mean = interval(...merge.accuracy);
    const [gain, low, high] = merge.beside_base;
    const where = told(state.method, stateOf(merge));
    const head = exact ? `Measured: ${where}` : `Not measured at this setting; nearest measured: ${where}`;
    const size = merge.size === null ? "" :
      ` The merge's norm is ${fixed(merge.size, 2)} times that of the adapters' plain, exact sum.`;
    const layers = methods[state.method].layerwise ? "" :
      ` ${methods[state.method].title} has no S_org: the pictures of layers are TIP's.`;
    return `${head}: mean accuracy ${fixed(mean.mean)} (95% interval ${bounds(mean)}), ` +
      `${points(gain)} points beside Base [${points(low)}, ${points(high)}], at ${state.rows}.${size}${layers}`;
  };

  // Pictures ---------------------------------------------------------------------------------------
  const layersOf = ({ task, s, sign, range }) => {
    const { importance, sizes } = tasks[task];
    const sparsity = Tip.layerSparsity(importance, s, Number(sign), range);
    const kept = sparsity.map((one) => Tip.keptShare(shapes, one));
    const norm = sparsity.map((one, i) => Tip.sizeAt(sizes[i], rank, one));
    const before = sizes.map(([whole]) => whole);
    kept.mean = kept.reduce((a, b) => a + b, 0) / kept.length;
    norm.whole = Math.hypot(...norm);
    before.whole = Math.hypot(...before);
    return { importance, sparsity, kept, norm, before,
      unbounded: Tip.unbounded(importance, s, Number(sign), range),
      most: importance.indexOf(Math.max(...importance)) };
  };

  const layerAxis = { ...Explorer.below("layer (transformer block)"), ticks: 6 };
  const marked = (most, y) => [
    Plot.ruleX([most], { stroke: "currentColor", strokeDasharray: "2 3" }),
    Plot.text([[most, y]], { text: () => "most important", dy: -10, fill: "currentColor",
      textAnchor: most > 15 ? "end" : "start", dx: most > 15 ? -4 : 4 }),
  ];

  const layerPictures = (state, { sparsity, unbounded, kept, norm, before, most }) => {
    const colour = methods.tip.colour;
    const rows = sparsity.map((value, layer) =>
      ({ layer, value, asked: unbounded[layer], kept: kept[layer], norm: norm[layer], before: before[layer] }));
    const outside = rows.filter(({ value, asked }) => value !== asked);
    const high = Math.max(1, ...unbounded);
    const low = Math.min(0, ...unbounded);
    const at = (values) => `at the most important layer, ${most}, ${values[most].toFixed(2)}`;
    return [
      {
        title: "Sparsity of every layer (Eqs. 3–5)",
        note: "Open circles: what Eq. 5 gives outside of 0 to 1, before it is clipped. Dashed: S_org.",
        label: `Sparsity by layer, from ${Math.min(...sparsity).toFixed(2)} to ` +
          `${Math.max(...sparsity).toFixed(2)}; ${at(sparsity)}.`,
        plot: (width) => plotted(width, {
          height: 250, marginTop: 26, marginBottom: 42, x: layerAxis,
          y: { domain: [low, high], label: "sparsity", labelArrow: "none", grid: true },
          marks: [
            Plot.ruleY([0, 1], { stroke: GREY }),
            Plot.ruleY([state.s], { stroke: GREY, strokeDasharray: "5 4" }),
            Plot.dot(outside, { x: "layer", y: "asked", stroke: GREY, r: 3 }),
            Plot.line(rows, { x: "layer", y: "value", stroke: colour }),
            Plot.dot(rows, { x: "layer", y: "value", fill: colour, r: 3 }),
            ...marked(most, high),
          ],
        }),
      },
      {
        title: "Share of each layer's elements that is kept",
        label: `Kept share by layer, ${percent(kept.mean)} in all; ${at(kept)}.`,
        plot: (width) => plotted(width, {
          height: 250, marginTop: 26, marginBottom: 42, x: layerAxis,
          y: { domain: [0, 100], percent: true, label: "% kept", labelArrow: "none", grid: true },
          marks: [
            Plot.rectY(rows, { x1: (d) => d.layer - 0.4, x2: (d) => d.layer + 0.4, y: "kept", fill: colour }),
            Plot.ruleY([0], { stroke: GREY }),
            ...marked(most, 1),
          ],
        }),
      },
      {
        title: "Norm of each layer's update",
        note: "Open circles: the adapter as trained. Filled: pruned.",
        label: `Norm of the update by layer: ${threeDigits(before.whole)} in all as trained, ` +
          `${threeDigits(norm.whole)} pruned; ${at(norm)}.`,
        plot: (width) => plotted(width, {
          height: 250, marginTop: 26, marginBottom: 42, x: layerAxis,
          y: { label: "norm of sBA", labelArrow: "none", grid: true, zero: true },
          marks: [
            Plot.ruleX(rows, { x: "layer", y1: "norm", y2: "before", stroke: GREY, strokeOpacity: 0.5 }),
            Plot.dot(rows, { x: "layer", y: "before", stroke: GREY, r: 3 }),
            Plot.dot(rows, { x: "layer", y: "norm", fill: colour, r: 3 }),
            Plot.ruleY([0], { stroke: GREY }),
            ...marked(most, Math.max(...before)),
          ],
        }),
      },
    ];
  };

  const accuracies = (state, { merge }) => {
    const own = names.slice(0, merge.adapters);
    const { alone, rows } = profiles[state.rows];
    const line = (name, keys) => ({ name, count: keys.length === 1 ? rows[keys[0]] : "",
      base: interval(...keys.map((t) => alone.base[t])), single: interval(...keys.map((t) => alone.single[t])),
      merged: interval(...keys.map((t) => merge.accuracy[own.indexOf(t)])) });
    return [...own.map((t) => line(tasks[t].title, [t])), line(`mean of ${own.length}`, own)];
  };

  const accuracyPicture = (state, answer) => {
    const lines = accuracies(state, answer);
    const colour = methods[state.method].colour ?? "currentColor";
    const title = methods[state.method].title;
    const { mean } = lines.at(-1).merged;
    return {
      title: answer.exact ? `Accuracies, ${title}` : `Accuracies of the nearest measured setting, ${title}`,
      note: `${answer.exact ? "Filled" : "Open"} circle: ${title}, merged, with its 95% interval. ` +
        "Line: Base. Diamond: Single.",
      label: `Accuracy by task; mean of ${title} ${fixed(mean)}, of Base ` +
        `${fixed(lines.at(-1).base.mean)}, of Single ${fixed(lines.at(-1).single.mean)}.`,
      plot: (width) => plotted(width, {
        height: 60 + 30 * lines.length, marginLeft: 104, marginTop: 10, marginBottom: 42,
        x: { ...Explorer.below("accuracy"), domain: [0, 1], grid: true, ticks: 5 },
        y: { domain: lines.map(({ name }) => name), label: null, tickSize: 0 },
        marks: [
          Plot.tickX(lines, { x: (d) => d.base.mean, y: "name", stroke: colours.Base, strokeWidth: 2 }),
          Plot.dot(lines, { x: (d) => d.single.mean, y: "name", symbol: "diamond", stroke: colours.Single, r: 5 }),
          Plot.ruleY(lines, { x1: (d) => d.merged.low, x2: (d) => d.merged.high, y: "name",
            stroke: colour, strokeWidth: 2, strokeDasharray: answer.exact ? null : "3 3" }),
          Plot.dot(lines, { x: (d) => d.merged.mean, y: "name", r: 5, stroke: colour,
            strokeWidth: 2, fill: answer.exact ? colour : "none" }),
        ],
      }),
    };
  };

  // Tables -----------------------------------------------------------------------------------------
  const layerTable = (state, { importance, sparsity, kept, before, norm }) => ({
    caption: `Layers of the adapter of ${tasks[state.task].title}`,
    head: ["layer", "sparsity", "kept", "norm as trained", "norm pruned", "importance"],
    rows: sparsity.map((one, i) => [`${i}`, fixed(one), percent(kept[i]), fixed(before[i]),
      fixed(norm[i]), importance[i].toPrecision(3)]),
  });

  const accuracyTable = (state, answer) => ({
    caption: `Accuracies with 95% intervals, measured at ${state.rows}: ` +
      `${told(state.method, stateOf(answer.merge))} (stored as ${answer.merge.name})`,
    head: ["task", "merged", "Base", "Single", "examples"],
    rows: accuracies(state, answer).map(({ name, merged, base, single, count }) =>
      [name, ...[merged, base, single].map((one) => `${fixed(one.mean)} (${bounds(one)})`), `${count}`]),
  });

  Explorer.start({
    controls: [{ legend: "What TIP prunes of an adapter", controls: adapter },
      { legend: "The merge", controls: merge }],
    shown(state) {
      const layers = layersOf(state);
      const answer = found(state);
      const known = answer ? [answer] : [];
      return {
        says: [layersSaid(state, layers), mergeSaid(state, answer)],
        nearest: answer && !answer.exact ? stateOf(answer.merge) : null,
        pictures: [...layerPictures(state, layers), ...known.map((one) => accuracyPicture(state, one))],
        tables: [...known.map((one) => accuracyTable(state, one)), layerTable(state, layers)],
      };
    },
  });
})();
