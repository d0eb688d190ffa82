"""A diffusion model inside a NumPy pipeline: arrays of token ids in; logits, scores and answers as arrays out.

    python numpy_pipeline.py [FOLDER]

Without a checkpoint's folder it takes the demo model.
"""
from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray

import llada_native


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return np.exp(shifted) / np.exp(shifted).sum(-1, keepdims=True)


def denoised(model: llada_native.LLaDAForCausalLM, prompt: NDArray[np.int32], length: int) -> NDArray[np.int32]:
    """A decoding loop of one's own: in every pass the surest token of all masks. The model is only a function from ids to logits."""
    mask = model.options().mask_id
    ids = np.concatenate([prompt, np.full(length, mask, np.int32)])
    while (masked := np.flatnonzero(ids == mask)).size:
        probabilities = softmax(model.forward(ids)[masked])          # [masks, vocabulary]
        surest = probabilities.max(-1).argmax()
        ids[masked[surest]] = probabilities[surest].argmax()
    return ids[len(prompt):]


def padded(rows: list[NDArray[np.int32]]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """A batch [rows, longest] and its attention mask, for those who have batches of this kind."""
    longest = max(map(len, rows))
    ids = np.stack([np.pad(row, (longest - len(row), 0)) for row in rows])
    return ids, np.stack([np.arange(longest) >= longest - len(row) for row in rows]).astype(np.int32)


def main(folder: str | None = None) -> None:
    with llada_native.LLaDAForCausalLM(folder) as model:
        questions = ["What is 17 plus 25?", "Sort these numbers: 31, 7, 52, 12."]
        prompts = [np.asarray(model.tokenizer.encode_chat([{"role": "user", "content": text}]), np.int32) for text in questions]

        # Logits, of a padded batch and of rows of any length: the same, for what is dropped is never computed.
        ids, attention_mask = padded(prompts)
        batch = model.forward_logits_batch(ids, attention_mask)
        print("logits", batch.shape, batch.dtype)
        for row, kept, logits in zip(batch, attention_mask.astype(bool), model.forward(prompts), strict=True):
            assert np.array_equal(row[kept], logits)

        # Answers: the package's sampler, and the loop above.
        result = model.generate(prompts, gen_length=32, block_length=32)
        for prompt, sequence, text in zip(prompts, result.sequences, result.text, strict=True):
            same = np.array_equal(sequence[len(prompt):], denoised(model, prompt, 32))
            print("answer", repr(text), "as the loop" if same else "not as the loop")

        # Scores: which of some answers does the model think likeliest?
        candidates = ["17 + 25 = 41", "17 + 25 = 42", "17 + 25 = 43"]
        scores = model.score(prompts[0], candidates, mc_num=32, seed=0)
        print("likeliest", candidates[int(scores.argmax())], scores.dtype, scores.shape)


if __name__ == "__main__":
    main(*sys.argv[1:])
