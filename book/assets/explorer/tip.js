// TIP Eqs. 3-5 as tipmini/papers/tip.py has them, and what follows of a sparsity for a layer. Pure
// functions of numbers; tests/book/test_explorer.py holds them against the package's.
const Tip = {
  // Eq. 3: (L) to (L) in [0, 1]; zeros where all layers are equally important.
  normalized(importance) {
    const low = Math.min(...importance);
    const spread = Math.max(...importance) - low;
    return importance.map((one) => (spread ? (one - low) / spread : 0));
  },

  // Eqs. 3-5 before anything is done about values outside [0, 1].
  unbounded(importance, base, sign, range) {
    const normalized = Tip.normalized(importance);
    const mean = normalized.reduce((sum, one) => sum + one, 0) / normalized.length;
    return normalized.map((one) => base + sign * range * (one - mean));
  },

  layerSparsity(importance, base, sign, range) {
    const unbounded = Tip.unbounded(importance, base, sign, range);
    return unbounded.map((one) => Math.min(1, Math.max(0, one)));
  },

  // The share of a layer's elements that stay: of each row the lowest floor(k S) of k go.
  keptShare(shapes, sparsity) {
    const count = (kept) => shapes.reduce((sum, [rows, k]) => sum + rows * kept(k), 0);
    return count((k) => k - Math.floor(k * sparsity)) / count((k) => k);
  },

  // A layer's norm at a sparsity, of its norms at the sparsities of `explorer.sparsities`. Between
  // two of them it is a straight line; where another of the `rank` columns of B goes, a step.
  sizeAt(sizes, rank, sparsity) {
    const column = Math.floor(rank * sparsity);
    if (column >= rank) return 0;
    const steps = sizes.length / rank - 1;
    const way = (rank * sparsity - column) * steps;
    const step = Math.min(Math.floor(way), steps - 1);
    const [from, to] = sizes.slice(column * (steps + 1) + step);
    return from + (way - step) * (to - from);
  },
};
