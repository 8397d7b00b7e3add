"""What a computation costs, counted as it runs: operations, bytes moved, bytes held at the peak.

Every operation that torch is asked for is seen, whatever the device. A fused kernel moves less than
is counted here, and an allocator holds more.
"""

import weakref
from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

Operation = tuple[str, int, int]  # dtype of a product, its floating-point operations, bytes moved
Peaks = Mapping[str, float]  # operations a second by dtype, and "bytes" a second


class Counted(TorchDispatchMode):
    """While it is entered, every operation is noted.

    peak: bytes of the most that was held at a time of what was made since; what was there before
    is not counted, and what is freed is let go.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[Operation] = Counter()
        self.held = self.peak = 0
        self._known: set[int] = set()  # storages that are held

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        if func.is_view:
            return found
        made = [x for x in tree_leaves(found) if isinstance(x, Tensor)]
        read = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        moved = sum(x.numel() * x.element_size() for x in (*read, *made))
        flops = self._flops(func, args, kwargs, found)
        dtype = str(made[0].dtype).removeprefix("torch.") if made and flops else ""
        self.operations[dtype, flops, moved] += 1
        before = {id(x.untyped_storage()) for x in read}  # as of what is changed in place
        for storage in (x.untyped_storage() for x in made):
            if id(storage) not in before:
                self._hold(storage)
        return found

    @staticmethod
    def _flops(func, args, kwargs, found) -> int:
        """Of products alone, as torch counts them; a sum of elements is told by its bytes."""
        name = func.overloadpacket.__name__
        packet = getattr(torch.ops.aten, name.rstrip("_"), func.overloadpacket)  # also in place
        count = flop_registry.get(packet)
        return int(count(*args, **kwargs, out_val=found)) if count else 0

    def _hold(self, storage: torch.UntypedStorage) -> None:
        if (key := id(storage)) in self._known or not storage.nbytes():
            return
        self._known.add(key)
        size = storage.nbytes()
        self.held += size
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self._let_go, key, size)

    def _let_go(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.held -= size

    def facts(self) -> dict[str, float]:
        """Bytes at the "peak", floating-point operations by dtype ("flops.float32"), and bytes
        moved by "products" and by all "other" operations."""
        found = Counter({"peak": self.peak, "products": 0, "other": 0})
        for (dtype, flops, moved), count in self.operations.items():
            found["products" if flops else "other"] += moved * count
            if flops:
                found[f"flops.{dtype}"] += flops * count
        return dict(found)


def least_seconds(facts: Mapping[str, float], peaks: Peaks) -> float:
    """The least time on a machine of such peaks (the roofline): products take as long as they are
    computed or as their bytes are moved, whichever is longer; then come the other bytes."""
    computed = sum(facts.get(f"flops.{dtype}", 0.0) / peak for dtype, peak in peaks.items())
    return max(computed, facts["products"] / peaks["bytes"]) + facts["other"] / peaks["bytes"]


def all_flops(facts: Mapping[str, float]) -> float:
    """In whatever dtype."""
    return sum(value for name, value in facts.items() if name.startswith("flops."))
