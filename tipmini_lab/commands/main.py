"""The whole command line: what merges, and the laboratory's commands."""

from tipmini.cli.arguments import examples
from tipmini.cli.main import app, main
from tipmini_lab.commands import batch, one
from tipmini_lab.commands.blockwise import blockwise

COMMANDS = {
    one.calibrate: [
        "tipmini calibrate --task piqa --out piqa.safetensors",
        "tipmini calibrate --task piqa --statistic gram --unlabelled --out piqa-grams.safetensors",
        "tipmini calibrate --text own.jsonl --adapter adapters/piqa --out piqa.safetensors",
        "tipmini calibrate --task colours --include-path tasks --adapter adapters/piqa"
        " --out piqa.safetensors",
    ],
    one.weigh: [
        "tipmini weigh --task piqa --task rte --out weights.json",
        "tipmini weigh --text a.jsonl --text b.jsonl --adapter adapters/piqa"
        " --adapter adapters/rte --out weights.json",
        "tipmini weigh --task colours --include-path tasks --adapter adapters/piqa"
        " --out weights.json",
    ],
    one.distill: [
        "tipmini distill --out both adapters/piqa adapters/rte",
        "tipmini distill --text a.jsonl --text b.jsonl --rows 64 --out both"
        " adapters/piqa adapters/rte",
        "tipmini distill --rank 8 --rows 64 --out small adapters/piqa adapters/rte",
    ],
    blockwise: [
        "tipmini blockwise --out both adapters/piqa adapters/rte",
        "tipmini blockwise --text a.jsonl --text b.jsonl --out both adapters/piqa adapters/rte",
        "tipmini blockwise --method drift --rank 8 --out small adapters/piqa adapters/rte",
    ],
    one.evaluate: [
        "tipmini evaluate --adapter adapters/rte --task rte --limit 20",
        "tipmini evaluate --adapter adapters/rte --task colours --include-path tasks",
    ],
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
    batch.rehearse: ["tipmini rehearse --profile a40", "tipmini rehearse --json"],
    batch.book: ["tipmini book --profile mini"],
    batch.batch: [
        "tipmini batch --profile mini --group sweeps --dry-run",
        "tipmini batch --profile mini --group sweeps --jobs 8 --cluster workflow/slurm",
    ],
    batch.publish: ["tipmini publish _build/executed/mini"],
    batch.archive: ["tipmini archive"],
    batch.pdf: ["tipmini pdf", "tipmini pdf book.pdf"],
    one.prune: [
        "tipmini prune --share 0.5 --out half",
        "tipmini prune --share 0.2 --method taylor --no-tune --rows 128 --out fifth",
        "tipmini prune --share 0.5 --task boolq --steps 40 --reduction released --out boolq-half",
        "tipmini prune --share 0.5 --threshold global --exempt-first 0.1 --exempt-last 1 --out cut",
        "tipmini prune --method wanda-2:4 --rows 128 --out sparse",
        "tipmini prune --share 0.5 --text own.txt --out own-half",
        "tipmini prune --share 0.5 --dry-run --out half",
    ],
}

for command, lines in COMMANDS.items():
    app.command(epilog=examples(*lines))(command)
app.command(
    "lm-eval",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog=examples("tipmini lm-eval run --help"),
)(one.lm_eval)

if __name__ == "__main__":
    main()
