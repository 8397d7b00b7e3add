"""The command line called in this process: what it prints, or the one line that it refuses with."""

import sys

import pytest

from tipmini_lab.commands import main


@pytest.fixture
def call(monkeypatch):
    """The exit code of the entry point itself."""

    def called(*given) -> int:
        monkeypatch.setattr(sys, "argv", ["tipmini", *map(str, given)])
        with pytest.raises(SystemExit) as stopped:
            main.main()
        return stopped.value.code

    return called


@pytest.fixture
def refused(call, capsys):
    """The one line of a call that the user can mend, whatever transformers says besides."""

    def line(*given, beside: bool = False) -> str:
        assert call(*given) == 2
        shown = capsys.readouterr()
        lines = shown.err.strip().splitlines()
        (told,) = [line for line in lines if line.startswith("tipmini")] if beside else lines
        assert shown.out == ""
        return told

    return line


@pytest.fixture
def small(tiny, tokenizer, tmp_path, monkeypatch):
    """The working folder, with tiny adapters and own rows; a tiny model stands for the embedded
    one."""
    from labs import save_adapter, save_own

    from tipmini_lab.evaluation import assets, model

    monkeypatch.setattr(assets, "embedded", lambda: tiny)
    monkeypatch.setattr(model, "keep_memory", lambda: None)
    monkeypatch.setattr(model, "load_tokenizer", lambda _: tokenizer)  # takes a second
    monkeypatch.chdir(tmp_path)
    for seed, task in enumerate(("piqa", "rte")):
        save_adapter(tmp_path / "adapters" / task, seed)
    save_own(tmp_path)
    return tmp_path
