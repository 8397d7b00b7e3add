"""The whole command line: what merges, and the laboratory's commands."""

from tipmini.cli.arguments import examples
from tipmini.cli.main import app, main
from tipmini_lab.commands import batch, one

COMMANDS = {
    one.calibrate: [
        "tipmini calibrate --task piqa --out piqa.safetensors",
        "tipmini calibrate --task piqa --statistic gram --out piqa-grams.safetensors",
    ],
    one.weigh: ["tipmini weigh --task piqa --task rte --out weights.json"],
    one.evaluate: ["tipmini evaluate --adapter adapters/rte --task rte --limit 20"],
    batch.measure: [
        "tipmini measure --profile smoke --method single --task rte",
        "tipmini measure --profile mini --group ledger --variant tip-cat",
    ],
    batch.norms: ["tipmini norms --profile smoke --task rte"],
    one.fetch: ["tipmini fetch"],
    one.adapters: ["tipmini adapters --task rte"],
    batch.claims: ["tipmini claims", "tipmini claims --json"],
    batch.again: ["tipmini again", "tipmini again --minutes 1"],
    batch.reproduce: ["tipmini reproduce --profile mini"],
    batch.book: ["tipmini book --profile mini"],
    batch.publish: ["tipmini publish _build/executed/mini"],
}

for command, lines in COMMANDS.items():
    app.command(epilog=examples(*lines))(command)
app.command(epilog=one.EPILOG)(one.prune)
app.command(
    "lm-eval",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog=examples("tipmini lm-eval run --help"),
)(one.lm_eval)

if __name__ == "__main__":
    main()
