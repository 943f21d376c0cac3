"""A small model as a GGUF file, such as the packages of the embedded models carry."""

import hashlib
from pathlib import Path
from typing import Any

import gguf
import numpy as np

LETTERS = [chr(c) for c in range(ord("!"), ord("~") + 1)] + ["Ġ", "Ċ", "ĠM"]
TOKENS = ["<unk>", "<s>", "</s>", *LETTERS]
D_MODEL, D_KV, D_MLP = 32, 16, 32
OF_A_LAYER = {
    **{"attn_norm": (D_MODEL,), "ffn_norm": (D_MODEL,)},
    **{"attn_q": (D_MODEL, D_MODEL), "attn_output": (D_MODEL, D_MODEL)},
    **{"attn_k": (D_KV, D_MODEL), "attn_v": (D_KV, D_MODEL)},
    **{"ffn_gate": (D_MLP, D_MODEL), "ffn_up": (D_MLP, D_MODEL), "ffn_down": (D_MODEL, D_MLP)},
}


def write_gguf(path: Path) -> None:
    """A 2-layer Llama of d_model 32 with a byte-level vocabulary."""
    writer = gguf.GGUFWriter(path, "llama")
    sizes = {"block_count": 2, "context_length": 64, "head_count": 4, "head_count_kv": 2}
    sizes |= {"embedding_length": D_MODEL, "feed_forward_length": D_MLP, "vocab_size": len(TOKENS)}
    for name, value in (sizes | {"layer_norm_rms_eps": 1e-5, "rope_freq_base": 10000.0}).items():
        getattr(writer, f"add_{name}")(value)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3] + [1] * len(LETTERS))
    writer.add_token_merges(["Ġ M"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    shapes = {"token_embd": (len(TOKENS), D_MODEL), "output_norm": (D_MODEL,)}
    for i in range(2):
        shapes |= {f"blk.{i}.{name}": shape for name, shape in OF_A_LAYER.items()}
    numbers = np.random.default_rng(0)
    for name, shape in shapes.items():
        value = numbers.normal(size=shape).astype(np.float32)
        if len(shape) == 2:  # quantised, as in the real files
            kind = gguf.GGMLQuantizationType.Q4_1
            writer.add_tensor(f"{name}.weight", gguf.quantize(value, kind), raw_dtype=kind)
        else:
            writer.add_tensor(f"{name}.weight", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_packages(folder: Path) -> dict[str, Any]:
    """Two packages that carry the file in two parts; what its `EmbeddedSource` is made from."""
    folder.mkdir(exist_ok=True)
    write_gguf(folder / "whole.gguf")
    whole = (folder / "whole.gguf").read_bytes()
    for i, piece in enumerate((whole[:1000], whole[1000:]), start=1):
        (folder / f"toy_part{i}").mkdir()
        (folder / f"toy_part{i}/__init__.py").write_text("raise RuntimeError('imported')")
        (folder / f"toy_part{i}/piece").write_bytes(piece)
    parts = ("toy_part1/piece", "toy_part2/piece")
    sha256 = hashlib.sha256(whole).hexdigest()
    return {"requirements": ("toy==1.0",), "parts": parts, "sha256": sha256, "note": "toy"}
