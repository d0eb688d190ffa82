"""Where a router sends rows, as the logits of a model tell."""
import folders
import numpy as np

from llada_native import LLaDAForCausalLM


def rows_by_expert(folder, c, tensors, ids, backend):
    """[experts, len(ids)] of a model of one layer: the rows that change when that expert alone is not silent, which are those it gets."""
    downs = [f"model.layers.0.mlp.experts.{e}.down_proj.weight" for e in range(c["num_experts"])]

    def logits(only):
        kept = {name: np.zeros_like(t) if name in downs and name != only else t for name, t in tensors.items()}
        return LLaDAForCausalLM(folders.write(folder / str(only), c, kept), backend=backend).forward(ids)

    silent = logits(None)
    return np.array([(logits(down) != silent).any(1) for down in downs])
