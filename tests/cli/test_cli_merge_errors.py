"""`tipmini merge` told wrongly: one line, exit code 2, and nothing written."""

from pathlib import Path

import pytest
from merge_command import ADAPTERS, NORMS

LINEAR = ["--method", "linear", "--out", "m"]
TIP = ["--method", "tip"]
BAD = [
    (["--method", "tipp", "--out", "m", *ADAPTERS], "no merge method 'tipp'; did you mean 'tip'?"),
    ([*TIP, "--out", "m", *ADAPTERS], "method tip needs --norms, one file an adapter"),
    ([*NORMS, "--out", "m", *ADAPTERS], "norms are read by wanda, tip; name one"),
    (["--sparsity", "0.6", *LINEAR[2:], *ADAPTERS], "an option of magnitude, wanda, tip; name one"),
    ([*LINEAR, "--weights", "0/T", *ADAPTERS], "or 0.7/T, or a .json file, got '0/T'"),
    ([*LINEAR, "--weights", "0.5", *ADAPTERS], "numbers (--weight), sum, mean"),
    (["--method", "regmean", "--out", "m", *ADAPTERS], "method regmean needs --grams"),
    # What is written takes the place of the whole folder.
    ([*LINEAR[:2], "--overwrite", "--out", "adapters", *ADAPTERS], "--out adapters holds"),
    ([*LINEAR[:2], "--overwrite", "--out", ".", *ADAPTERS], "--out . holds adapters/"),
    ([*LINEAR[:2], "--overwrite", "--out", "notes", *ADAPTERS], "no adapter and no model"),
    ([*TIP, "--norms", "none.st", *NORMS[:4], "--out", "m", *ADAPTERS], "none.st: no such file"),
    ([*TIP, "--norms", "c.yaml", *NORMS[:4], "--out", "m", *ADAPTERS], "c.yaml: not a readable"),
    ([*TIP, *NORMS[:2], "--out", "m", *ADAPTERS], "norms must be one an adapter, 3, got 1"),
    (LINEAR, "give at least one adapter folder"),
    (["--method", "linear", *ADAPTERS], "--out must be a folder"),
    ([*LINEAR, "--sparsity", "0.5", *ADAPTERS], "linear has no option 'sparsity'; it has none"),
    ([*LINEAR, "--weight", "1", *ADAPTERS], "weights must be one an adapter, 3, got 1"),
    ([*LINEAR, "--weight", "nan", ADAPTERS[0]], "weights must be finite numbers"),
    ([*LINEAR, "--weights", "avg", *ADAPTERS], "or 0.7/T, or a .json file, got 'avg'"),
    ([*LINEAR, "--weights", "mean", "--weight", "1", ADAPTERS[0]], "not both"),
    (["--method", "ties", "-o", "densty=1", *LINEAR[2:], *ADAPTERS], "did you mean 'density'?"),
    (["--method", "ties", "-o", "density", *LINEAR[2:], *ADAPTERS], "needs name=value"),
    (["--method", "ties", "--density", "x", *LINEAR[2:], *ADAPTERS], "must be a number, got 'x'"),
    (["--method", "ties", "--rank", "1.5", *LINEAR[2:], *ADAPTERS], "must be a whole number"),
    ([*TIP, "-o", "rescale=1", *NORMS, "--out", "m", *ADAPTERS], "must be true or false, got '1'"),
    ([*TIP, "--sparsity", "1", "-o", "sparsity=1", *NORMS, *LINEAR[2:], *ADAPTERS], "given twice"),
    ([*TIP, "-o", "mean=1", "-o", "mean=2", *NORMS, *LINEAR[2:], *ADAPTERS], "mean is given tw"),
    ([*TIP, "--sparsity", "1.5", *NORMS, *LINEAR[2:], *ADAPTERS], "must lie in [0, 1], got 1.5"),
    ([*TIP, "--sign", "2", *NORMS, *LINEAR[2:], *ADAPTERS], "sign must be 1"),
    (["--method", "linear", "--out", ADAPTERS[0], *ADAPTERS], "lies in the input adapters/piqa"),
    (["--method", "linear", "--out", "adapters/rte/x/y", *ADAPTERS], "lies in the input"),
    ([*LINEAR[:2], "--into", "base", "--out", "base/x", *ADAPTERS], "lies in the input base"),
    ([*LINEAR[:2], "--into", "base", "--out", "notes", *ADAPTERS], "is there already"),
    ([*LINEAR, "--into", "nothing", *ADAPTERS], "nothing: no such folder"),
    ([*LINEAR, "--into", "adapters/rte", *ADAPTERS], "config.json: missing"),
    (
        [*TIP, "--on", "delta", "--rank", "2", "--into", "base", *NORMS, *LINEAR[2:], *ADAPTERS],
        "with --into a delta is added whole",
    ),
    ([*LINEAR[:3], "c.yaml", *ADAPTERS], "cannot be written (not a folder)"),
    ([*LINEAR[:3], "notes", *ADAPTERS], "also holds"),
    ([*LINEAR[:3], "loop", *ADAPTERS], "cannot be written"),
    ([*LINEAR, "loop", *ADAPTERS], "loop: no such folder"),
    ([*LINEAR, "--into", "loop", *ADAPTERS], "loop: no such folder"),
    ([*LINEAR[:2], "--into", "base", "--out", "loop", *ADAPTERS], "is there already"),
    ([*LINEAR[:3], "x" * 300, *ADAPTERS], "cannot be written"),
    ([*LINEAR[:2], "--into", "base", "--out", "x" * 300, *ADAPTERS], "cannot be written"),
    ([*LINEAR, "--into", "x" * 300, *ADAPTERS], "no such folder"),
    (["--method", "svd", "--weight", "1e300", *LINEAR[2:], ADAPTERS[0]], "take smaller weights"),
    (
        ["--method", "ties", "--on", "delta", "--weight", "1e300", *LINEAR[2:], ADAPTERS[0]],
        "take smaller weights",
    ),
    (
        ["--method", "dare", "--summation", "svd", "--weight", "1e300", *LINEAR[2:], ADAPTERS[0]],
        "take smaller weights",
    ),
    ([*LINEAR, "--into", "base", "--dtype", "float16", *ADAPTERS], "the base keeps its own"),
    (["--config", "none.yaml"], "none.yaml: not a readable YAML file"),
    (["--config", "c.yaml", *LINEAR, *ADAPTERS], "c.yaml: merge has no argument 'adapter'; did"),
]  # fmt: skip


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
@pytest.mark.parametrize(
    ("given", "line"), BAD, ids=[f"{number} {line}" for number, (_, line) in enumerate(BAD)]
)
def test_what_the_user_can_mend_is_one_line(on_disk, refused, given, line, dry):
    Path("c.yaml").write_text("adapter: [adapters/piqa]\n")
    Path("loop").symlink_to("loop")
    Path("notes").mkdir()
    Path("notes/mine.txt").write_text("years of work")
    before = sorted(on_disk.rglob("*"))
    assert line in refused("merge", *dry, *given)
    assert sorted(on_disk.rglob("*")) == before
