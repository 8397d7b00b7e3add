// The explorer of pruning: the stored models of a criterion, a pruning ratio and a number of steps,
// beside another criterion's. Nothing is drawn that was not measured; lines only join what was.
(() => {
  const { plotted, interval, fixed, percent, threeDigits, GREY } = Explorer;
  const { criteria, corpora, tasks, averaged, steps, models, profile, unpruned, start } = EXPLORER_DATA;
  const STEPS = [["none", "none"], ["short", `${steps.short}`], ["long", `${steps.long}`]];
  const options = Object.entries(criteria).map(([name, { title }]) => [name, title]);

  const controls = [
    { name: "criterion", label: "Criterion", kind: "select", options, start: start.criterion },
    { name: "beside", label: "Compared with", kind: "select", options, start: start.beside },
    { name: "ratio", label: "Pruning ratio", kind: "range", min: 0, max: 0.5, step: 0.1, start: 0.5,
      told: percent },
    { name: "steps", label: "Steps of fine-tuning", kind: "radio", options: STEPS, start: "short" },
    { name: "corpus", label: "Perplexity on", kind: "radio", start: corpora[0],
      options: corpora.map((name) => [name, name]) },
  ];

  // What is measured -------------------------------------------------------------------------------
  // With nothing removed all criteria are one model, which is stored under one of them.
  const of = (criterion) => models.filter((one) => one.criterion === criterion || !one.ratio);

  const found = (criterion, { ratio, steps: tuned }) => {
    const likely = of(criterion).filter((model) => Boolean(model.ratio) === Boolean(ratio));
    const ranked = likely.map((model) => {
      const far = [Math.abs(model.ratio - ratio), Number(model.steps !== tuned)];
      return { model, count: far.filter((one) => one > 1e-9).length, sum: far[0] + far[1] };
    });
    ranked.sort((a, b) => a.count - b.count || a.sum - b.sum || b.model.ratio - a.model.ratio);
    return { model: ranked[0].model, exact: !ranked[0].count };
  };

  // The criterion and the one beside it, but for the second time of one model.
  const asked = (state) => [state.criterion, state.beside].filter((one, i, all) =>
    !i || found(one, state).model !== found(all[0], state).model);

  const meanOf = ({ accuracy }) =>
    averaged.every((task) => task in accuracy) ? interval(...averaged.map((task) => accuracy[task])) : null;

  // Words ------------------------------------------------------------------------------------------
  const stepsTold = (name) => (name === "none" ? "no fine-tuning" : `${steps[name]} steps`);
  const where = (criterion, { ratio, steps: tuned }) =>
    `${ratio ? criteria[criterion].title : "unpruned"}, ${percent(ratio)}, ${stepsTold(tuned)}`;
  const ppl = ([value, low, high]) =>
    `${threeDigits(value)} (${threeDigits(low)} to ${threeDigits(high)})`;
  const share = ({ mean, low, high }) => `${fixed(mean)} (${fixed(low)} to ${fixed(high)})`;

  const seedsSaid = (values) => (values.length < 2 ? "one seed"
    : `${values.length} seeds, ${threeDigits(Math.min(...values))} to ${threeDigits(Math.max(...values))}`);

  const said = (criterion, state) => {
    const { model, exact } = found(criterion, state);
    const head = exact ? where(criterion, model)
      : `${where(criterion, state)}: not measured at this setting; nearest measured: ${where(criterion, model)}`;
    const mean = meanOf(model);
    const accuracy = mean ? `mean accuracy ${share(mean)}` : "accuracy not measured";
    const kept = model.removed_of_model === null ? "" :
      `, ${percent(1 - model.removed_of_model)} of the model's parameters kept`;
    return `${head}: perplexity ${ppl(model.perplexity[state.corpus])} on ${state.corpus} ` +
      `(${seedsSaid(model.of_seeds[state.corpus])}), ${accuracy}${kept}.`;
  };

  // Pictures ---------------------------------------------------------------------------------------
  const colour = (criterion) => criteria[criterion].colour;

  // Powers of ten; with few of them also twice and five times as much.
  const logTicks = (shown) => {
    const [low, high] = [Math.min(...shown), Math.max(...shown)];
    const firsts = high / low > 1000 ? [1] : [1, 2, 5];
    return Array.from({ length: 8 }, (_, power) => firsts.map((one) => one * 10 ** power)).flat()
      .filter((tick) => low <= tick && tick <= high);
  };

  const perplexityPicture = (state) => {
    const line = (criterion) => of(criterion).filter((one) => one.steps === state.steps)
      .map(({ ratio, perplexity, of_seeds: seeds }) => ({ criterion, ratio,
        value: perplexity[state.corpus][0], low: perplexity[state.corpus][1],
        high: perplexity[state.corpus][2], seeds: seeds[state.corpus] }))
      .sort((a, b) => a.ratio - b.ratio);
    const shown = [state.criterion, state.beside];
    const others = Object.keys(criteria).filter((one) => !shown.includes(one)).flatMap(line);
    const [own, beside] = shown.map(line);
    const drawn = (points, criterion, chosen) => [
      Plot.line(points, { x: "ratio", y: "value", stroke: colour(criterion), strokeWidth: 2,
        strokeDasharray: chosen ? null : "5 4" }),
      Plot.ruleX(points, { x: "ratio", y1: "low", y2: "high", stroke: colour(criterion), strokeWidth: 2 }),
      Plot.dot(points, { x: "ratio", y: "value", stroke: colour(criterion), r: 4, strokeWidth: 2,
        symbol: chosen ? "circle" : "square", fill: chosen ? colour(criterion) : "none" }),
      Plot.dot(points.flatMap(({ ratio, seeds }) => seeds.map((value) => ({ ratio, value }))),
        { x: "ratio", y: "value", dx: chosen ? 7 : -7, r: 1.5, fill: colour(criterion) }),
    ];
    const [title, other] = shown.map((one) => criteria[one].title);
    return {
      wide: true,
      title: `Perplexity on ${state.corpus}, ${stepsTold(state.steps)}`,
      note: `Filled circles: ${title}. Squares: ${other}. Bars: 95% intervals; dots beside them: ` +
        "seeds. Thin grey: the other criteria. Lines join what was measured. Dashed: the ratio asked for.",
      label: `Perplexity by pruning ratio, on a logarithmic scale. ${title}: ` +
        `${own.map(({ ratio, value }) => `${threeDigits(value)} at ${percent(ratio)}`).join(", ") || "none"}.`,
      plot: (width) => plotted(width, {
        height: 310, marginLeft: 78, marginTop: 26, marginBottom: 42,
        x: { ...Explorer.below("pruning ratio"), domain: [-0.02, 0.52],
          ticks: [0, 0.1, 0.2, 0.3, 0.4, 0.5], tickFormat: percent },
        y: { type: "log", label: "perplexity", labelArrow: "none", grid: true,
          ticks: logTicks([...own, ...beside, ...others].flatMap(({ low, high }) => [low, high])),
          tickFormat: threeDigits },
        marks: [
          Plot.ruleX([state.ratio], { stroke: GREY, strokeDasharray: "5 4" }),
          Plot.line(others, { x: "ratio", y: "value", z: "criterion", stroke: GREY, strokeOpacity: 0.6 }),
          Plot.dot(others, { x: "ratio", y: "value", r: 2, fill: GREY, fillOpacity: 0.6 }),
          ...(state.beside === state.criterion ? [] : drawn(beside, state.beside, false)),
          ...drawn(own, state.criterion, true),
        ],
      }),
    };
  };

  const accuracies = ({ accuracy }) => {
    const mean = `mean of ${averaged.length}`;
    const own = Object.keys(tasks).filter((task) => task in accuracy)
      .map((task) => ({ name: tasks[task], ...interval(accuracy[task]) }));
    const whole = meanOf({ accuracy });
    return whole ? [...own, { name: mean, ...whole }] : own;
  };

  const accuracyPicture = (state) => {
    const base = accuracies(unprunedModel);
    const shown = asked(state).map((criterion, i) => {
      const { model, exact } = found(criterion, state);
      return { criterion, model, exact, own: accuracies(model), dy: i ? 6 : -6, symbol: i ? "square" : "circle" };
    });
    const marks = ({ criterion, exact, own, dy, symbol }) => [
      Plot.ruleY(own, { x1: "low", x2: "high", y: "name", dy, stroke: colour(criterion), strokeWidth: 2,
        strokeDasharray: exact ? null : "3 3" }),
      Plot.dot(own, { x: "mean", y: "name", dy, symbol, r: 4, stroke: colour(criterion), strokeWidth: 2,
        fill: exact ? colour(criterion) : "none" }),
    ];
    const signs = shown.map(({ criterion, model, own, symbol }) =>
      `${symbol === "circle" ? "Circle" : "Square"}: ${where(criterion, model)}${own.length ? "" : ", no accuracy measured"}.`);
    const told = shown.filter(({ own }) => own.length)
      .map(({ criterion, model, own }) => `${where(criterion, model)} ${fixed(own.at(-1).mean)}`);
    return {
      title: "Accuracies",
      note: `${signs.join(" ")} Bars: 95% intervals. Open: not the setting asked for. ` +
        "Line: the unpruned model, not fine-tuned.",
      label: `Accuracy by task; ${base.at(-1).name}: ${[...told, `unpruned ${fixed(base.at(-1).mean)}`].join(", ")}.`,
      plot: (width) => plotted(width, {
        height: 60 + 34 * base.length, marginLeft: 104, marginTop: 10, marginBottom: 42,
        x: { ...Explorer.below("accuracy"), domain: [0, 1], grid: true, ticks: 5 },
        y: { domain: base.map(({ name }) => name), label: null, tickSize: 0 },
        marks: [Plot.tickX(base, { x: "mean", y: "name", stroke: GREY, strokeWidth: 2 }), ...shown.flatMap(marks)],
      }),
    };
  };

  const SIZES = { removed_of_model: "whole model", removed_share: "blocks' weights",
    removed_heads: "heads", removed_channels: "channels" };

  const sizes = (model) => Object.entries(SIZES)
    .map(([name, title]) => ({ title, kept: 1 - (model[name] ?? 0) }));

  const sizePicture = (state, { model }) => ({
    title: `What is kept, ${where(state.criterion, model)}`,
    label: `Kept: ${sizes(model).map(({ title, kept }) => `${percent(kept)} of ${title}`).join(", ")}.`,
    plot: (width) => plotted(width, {
      height: 200, marginLeft: 104, marginTop: 10, marginBottom: 42,
      x: { ...Explorer.below("% kept"), domain: [0, 100], percent: true, grid: true, ticks: 5 },
      y: { domain: Object.values(SIZES), label: null, tickSize: 0 },
      marks: [Plot.barX(sizes(model), { x: "kept", y: "title",
        fill: model.ratio ? colour(state.criterion) : GREY })],
    }),
  });

  // Tables -----------------------------------------------------------------------------------------
  const unprunedModel = models.find(({ criterion }) => criterion === unpruned);

  const perplexityTable = (state) => ({
    caption: `Perplexity on ${state.corpus} with 95% intervals, and mean accuracy, ` +
      `${stepsTold(state.steps)}, measured at ${profile}`,
    head: ["criterion", "ratio", "perplexity", "seeds", "mean accuracy", "model kept"],
    rows: models.filter((one) => one.steps === state.steps).map((one) => [
      one.ratio ? criteria[one.criterion].title : "unpruned", percent(one.ratio),
      ppl(one.perplexity[state.corpus]), seedsSaid(one.of_seeds[state.corpus]),
      meanOf(one) ? share(meanOf(one)) : "not measured",
      one.removed_of_model === null ? "100%" : percent(1 - one.removed_of_model)]),
  });

  const accuracyTable = (state, { model }) => ({
    caption: `Accuracies with 95% intervals, ${where(state.criterion, model)}, measured at ${profile}`,
    head: ["task", "accuracy"],
    rows: accuracies(model).map(({ name, ...own }) => [name, share(own)]),
  });

  // Until these are measured, the picture stays.
  if (!unprunedModel || !criteria[start.criterion] || !criteria[start.beside]) return;
  Explorer.start({
    controls: [{ legend: "The pruned model", controls }],
    shown(state) {
      const answer = found(state.criterion, state);
      return {
        says: asked(state).map((one) => said(one, state)),
        nearest: answer.exact ? null : { ratio: answer.model.ratio, steps: answer.model.steps },
        pictures: [perplexityPicture(state), accuracyPicture(state), sizePicture(state, answer)],
        tables: [perplexityTable(state),
          ...(accuracies(answer.model).length ? [accuracyTable(state, answer)] : [])],
      };
    },
  });
})();
