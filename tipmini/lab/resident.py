"""One base model in memory and any number of adapters on it, each read once."""

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn


class Resident:
    """A base model that wears one of several PEFT adapters at a time, or none.

    base: a transformers model; its linear layers are wrapped where an adapter needs it, and
    outside of `wearing` it computes what it computed before.
    """

    def __init__(self, base: nn.Module):
        self.base = base
        self.peft = None  # a PeftModel around the base once there is an adapter
        self.known: set[str] = set()

    @contextmanager
    def wearing(self, folder: Path | str | None) -> Iterator[nn.Module]:
        """The PeftModel with the folder's adapter alone active; for None the base as it is.

        A folder is read the first time and when its factors have changed. Raises what PEFT raises
        for a folder that is none.
        """
        if folder is None:
            yield self.base
            return
        name = self._load(Path(folder))
        self.peft.base_model.enable_adapter_layers()
        self.peft.set_adapter(name)
        try:
            yield self.peft
        finally:
            self.peft.base_model.disable_adapter_layers()

    def _load(self, folder: Path) -> str:
        """The name of the folder's adapter, which is a hash of its files."""
        from peft import PeftModel

        files = sorted(folder.glob("adapter_*"))
        name = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
        if name not in self.known:
            if self.peft is None:
                self.peft = PeftModel.from_pretrained(self.base, folder, adapter_name=name)
            else:
                self.peft.load_adapter(folder, name)
            self.peft.eval()
            self.known.add(name)
        return name


def forget(resident: Resident) -> None:
    """Take all adapters from the model, which would hold each that it ever wore."""
    with warnings.catch_warnings(action="ignore"):  # of the active one's being among them
        for name in list(resident.known):
            resident.peft.delete_adapter(name)
            resident.known.discard(name)
