"""A language model alone: a released checkpoint without its wrapper and its vision tower, as K2-Thinking is stored."""

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

PREFIX = "language_model."


def write_flat_checkpoint(source: Path, folder: Path) -> None:
    """Write the language model of `source` as `model_type` kimi_k2 in the spelling of transformers 5."""
    folder.mkdir()
    for name in ("tiktoken.model", "tokenizer_config.json"):
        shutil.copyfile(source / name, folder / name)
    text = json.loads((source / "config.json").read_text())["text_config"]
    text["rope_parameters"] = {"rope_theta": text.pop("rope_theta"), **text.pop("rope_scaling")}
    text["rope_scaling"] = None
    text["torch_dtype"] = text.pop("dtype")
    (folder / "config.json").write_text(json.dumps(text))
    file_of = {}
    for file in sorted(source.glob("*.safetensors")):
        tensors = load_file(file)
        kept = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items() if name.startswith(PREFIX)}
        if kept:
            save_file(kept, folder / file.name)
            file_of |= dict.fromkeys(kept, file.name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": file_of}))
