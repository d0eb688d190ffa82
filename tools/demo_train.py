"""Train the demo model: a small LLaDA with the architecture, tensor names and chat format of LLaDA-8B-Instruct.

Writes a Hugging Face folder: config.json, model.safetensors, tokenizer.json, tokenizer_config.json. A run is fixed by its
arguments: the number of steps sets the learning-rate schedule and the seed sets data, masks and initial weights. The package
itself never needs torch; this script does (``pip install torch tokenizers safetensors``).

    python tools/demo_train.py OUT --steps 20000
    python tools/demo_train.py OUT --init tools/demo_start --steps 14000 --seed 1 --bfloat16    # the weights of the package
"""
import argparse
import contextlib
import json
import random
import time
from collections import defaultdict
from pathlib import Path

import demo_tasks as tasks
import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

SPECIALS = ["<|startoftext|>", "<|endoftext|>", "<|mdm_mask|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
TEMPLATE = (
    "{% for message in messages %}{{ ('<|startoftext|>' if loop.first else '') + '<|start_header_id|>' + message['role'] "
    "+ '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)
# Share of each task in a batch. The easy ones are learned early, so most of the budget goes to arithmetic chains and sorting.
MIXTURE = {"add": 2, "subtract": 2, "multiply": 1, "run": 6, "read": 2.5, "farm": 4, "sort": 5, "reverse": 2.5, "extract": 1.5,
           "story": 0.5, "capital": 0.2, "greet": 0.2}


def make_tokenizer(vocab: int = 512) -> Tokenizer:
    tok = Tokenizer(models.BPE())
    tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERN), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tok.decoder = decoders.ByteLevel()
    rng = random.Random(1)
    text = [" ".join(tasks.sample(rng)[1:]) for _ in range(20000)]
    text += ["user\n\n", "assistant\n\n", "system\n\n"] * 50
    tok.train_from_iterator(text, trainers.BpeTrainer(
        vocab_size=vocab - len(SPECIALS), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    tok.add_special_tokens(SPECIALS)
    return tok


def chat(prompt: str) -> str:
    return (f"<|startoftext|><|start_header_id|>user<|end_header_id|>\n\n{prompt}<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n")


class RMSNorm(nn.Module):
    def __init__(self, d, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(d)), eps

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        d, f = c["d_model"], c["mlp_hidden_size"]
        self.heads = c["n_heads"]
        self.attn_norm, self.ff_norm = RMSNorm(d, c["rms_norm_eps"]), RMSNorm(d, c["rms_norm_eps"])
        self.q_proj, self.k_proj, self.v_proj, self.attn_out = (nn.Linear(d, d, bias=False) for _ in range(4))
        self.ff_proj, self.up_proj = nn.Linear(d, f, bias=False), nn.Linear(d, f, bias=False)
        self.ff_out = nn.Linear(f, d, bias=False)

    def forward(self, x, cos, sin, bias):
        b, t, d = x.shape
        h = self.attn_norm(x)
        q, k, v = (p(h).float().view(b, t, self.heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))

        def rotate(z):
            half = z.shape[-1] // 2
            return z * cos + torch.cat((-z[..., half:], z[..., :half]), -1) * sin

        with torch.autocast(x.device.type, enabled=False):  # on a CPU float32 attention is the faster one
            a = F.scaled_dot_product_attention(rotate(q), rotate(k), v, attn_mask=bias)
        x = x + self.attn_out(a.transpose(1, 2).reshape(b, t, d))
        h = self.ff_norm(x)
        return x + self.ff_out(F.silu(self.ff_proj(h)) * self.up_proj(h))


class LLaDA(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        self.wte = nn.Embedding(c["vocab_size"], c["d_model"])
        self.blocks = nn.ModuleList(Block(c) for _ in range(c["n_layers"]))
        self.ln_f = RMSNorm(c["d_model"], c["rms_norm_eps"])
        self.ff_out = nn.Linear(c["d_model"], c["vocab_size"], bias=False)
        for n, p in self.named_parameters():  # the residual stream starts as the embedding: at first no block adds anything
            if n == "wte.weight":
                nn.init.normal_(p)
            elif n.endswith(("attn_out.weight", "ff_out.weight")):
                nn.init.zeros_(p)
            elif p.dim() == 2:
                nn.init.normal_(p, std=p.shape[1] ** -0.5)

    def forward(self, ids, pad=None):
        hd = self.c["d_model"] // self.c["n_heads"]
        inv = self.c["rope_theta"] ** (-torch.arange(0, hd, 2, device=ids.device) / hd)
        angle = torch.outer(torch.arange(ids.shape[1], device=ids.device), inv).repeat(1, 2)
        bias = None
        if pad is not None:
            bias = torch.zeros(pad.shape, device=pad.device).masked_fill(pad, float("-inf"))[:, None, None, :]
        x = self.wte(ids)
        for b in self.blocks:
            x = b(x, angle.cos(), angle.sin(), bias)
        return self.ff_out(self.ln_f(x))


class Stream:
    """Batches of one length bucket: (ids, answer mask, padding), each [rows, length]."""

    def __init__(self, tok, cfg, seed):
        self.rng, self.tok, self.c = random.Random(seed), tok, cfg
        self.names, self.weights = list(MIXTURE), list(MIXTURE.values())
        self.buckets = {}

    def batch(self, size):
        while True:
            _, p, a = tasks.sample(self.rng, task=self.rng.choices(self.names, self.weights)[0])
            p = self.tok.encode(chat(p), add_special_tokens=False).ids
            a = [*self.tok.encode(a, add_special_tokens=False).ids, self.c["eot_token_id"]]
            gen = -(-len(a) // 16) * 16  # half the time the tightest canvas, else any that fits: padding is learned as end-of-text
            if self.rng.random() < 0.5:
                gen = self.rng.choice([g for g in (16, 32, 48, 64) if g >= len(a)])
            a = a + [self.c["eos_token_id"]] * (gen - len(a))
            key = -(-(len(p) + gen) // 16)
            rows = self.buckets.setdefault(key, [])
            rows.append((p, a))
            if len(rows) * key * 16 >= size:
                del self.buckets[key]
                return self.pack(rows)

    def pack(self, rows):
        n = max(len(p) + len(a) for p, a in rows)
        ids = torch.full((len(rows), n), self.c["eos_token_id"])
        answer = torch.zeros((len(rows), n), dtype=torch.bool)
        pad = torch.ones((len(rows), n), dtype=torch.bool)
        for i, (p, a) in enumerate(rows):  # right padding keeps position 0 at the prompt's start
            end = len(p) + len(a)
            ids[i, :end] = torch.tensor(p + a)
            answer[i, len(p):end] = True
            pad[i, :end] = False
        return ids, answer, pad


def loss_fn(model, ids, answer, pad, mask_id):
    """The LLaDA bound (arXiv:2502.09992, equation 3): cross-entropy of masked tokens, weighted 1/t."""
    b = ids.shape[0]
    whole = torch.rand(b, device=ids.device) < 0.1  # pre-training style: the prompt is masked too, which guidance needs
    area = torch.where(whole[:, None], ~pad, answer)
    t = ((torch.arange(b) + torch.rand(1)) / b)[torch.randperm(b)].clamp(min=0.02).to(ids.device)
    noisy = (torch.rand(ids.shape, device=ids.device) < t[:, None]) & area
    logits = model(torch.where(noisy, mask_id, ids), pad if pad.any() else None)
    ce = F.cross_entropy(logits[noisy].float(), ids[noisy], reduction="none")
    w = (1 / t[:, None].clamp(min=0.25)).expand_as(ids)[noisy]  # the clip trades a little bias for much less variance
    return (ce * w).sum() / area.sum()


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised by five Newton-Schulz steps, for the matrices inside the blocks (Jordan et al., 2024).

    Matrices of one shape are stacked, so that a step is a few batched products instead of hundreds of small ones.
    """

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})
        shapes = defaultdict(list)
        for p in self.param_groups[0]["params"]:
            shapes[p.shape].append(p)
        self.stacks = [(ps, torch.zeros(len(ps), *shape, device=ps[0].device)) for shape, ps in shapes.items()]

    @torch.no_grad()
    def step(self):
        lr = self.param_groups[0]["lr"]
        for ps, momentum in self.stacks:
            grad = torch.stack([p.grad for p in ps])
            momentum.lerp_(grad, 0.05)
            x = grad.lerp(momentum, 0.95)
            rows, cols = x.shape[1:]
            x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
            x = x.mT if rows > cols else x
            for _ in range(5):
                y = x @ x.mT
                x = 3.4445 * x + (-4.775 * y + 2.0315 * y @ y) @ x
            x = x.mT if rows > cols else x
            for p, u in zip(ps, x, strict=True):
                p.mul_(1 - lr * 0.01).add_(u, alpha=-lr * max(1, rows / cols) ** 0.5)


@torch.no_grad()
def answers(model, tok, prompts, gen=64, block=32):
    """Greedy answers, one token a step in blocks of 32: the reference sampler at temperature 0, all prompts in one batch."""
    c = model.c
    device = model.wte.weight.device
    rows = [tok.encode(chat(p), add_special_tokens=False).ids for p in prompts]
    start = torch.tensor([len(r) for r in rows], device=device)[:, None]
    n = int(start.max()) + gen
    x = torch.full((len(rows), n), c["mask_token_id"], device=device)
    for i, r in enumerate(rows):
        x[i, :len(r)] = torch.tensor(r)
    offset = torch.arange(n, device=device)[None] - start
    each = torch.arange(len(rows), device=device)
    for s in range(gen):
        conf, token = model(x, offset >= gen).softmax(-1).max(-1)
        open_ = (x == c["mask_token_id"]) & (offset // block == s // block)
        pos = conf.masked_fill(~open_, -1).argmax(-1)
        x[each, pos] = token[each, pos]
    texts = []
    for i, r in enumerate(rows):
        out = x[i, len(r):len(r) + gen].tolist()
        stop = min([out.index(e) for e in (c["eot_token_id"], c["eos_token_id"]) if e in out] or [gen])
        texts.append(tok.decode(out[:stop]))
    return texts


def evaluate(model, tok, n, seed=7):
    rng, score = random.Random(seed), {}
    for task in tasks.TASKS:
        if task not in tasks.ALWAYS_TRAINED:
            samples = [tasks.sample(rng, True, task) for _ in range(n)]
            got = answers(model, tok, [p for _, p, _ in samples])
            score[task] = round(sum(g == a for g, (_, _, a) in zip(got, samples, strict=True)) / n, 3)
    return score


def save(model, tok, cfg, out):
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(cfg, indent=2) + "\n")
    tok.save(str(out / "tokenizer.json"))
    (out / "tokenizer_config.json").write_text(json.dumps({
        "add_bos_token": False, "add_eos_token": False, "bos_token": SPECIALS[0], "eos_token": SPECIALS[1],
        "pad_token": SPECIALS[1], "mask_token": SPECIALS[2], "chat_template": TEMPLATE,
        "model_max_length": cfg["max_sequence_length"], "tokenizer_class": "PreTrainedTokenizerFast"}, indent=2) + "\n")
    save_file({"model.transformer." + n: p.detach().to("cpu", torch.bfloat16).contiguous() for n, p in model.named_parameters()},
              str(out / "model.safetensors"), metadata={"format": "pt"})


def make_config(tok, size):
    d_model, mlp, layers = size
    vocab, ids = tok.get_vocab_size(), {s: tok.token_to_id(s) for s in SPECIALS}
    return {
        "architectures": ["LLaDAModelLM"], "model_type": "llada", "activation_type": "silu", "alibi": False,
        "attention_dropout": 0.0, "attention_layer_norm": False, "bias_for_layer_norm": False, "block_group_size": 1,
        "block_type": "llama", "d_model": d_model, "embedding_dropout": 0.0, "embedding_size": vocab,
        "eos_token_id": ids["<|endoftext|>"], "eot_token_id": ids["<|eot_id|>"], "flash_attention": False,
        "include_bias": False, "include_qkv_bias": False, "input_emb_norm": False, "layer_norm_type": "rms",
        "layer_norm_with_affine": True, "mask_token_id": ids["<|mdm_mask|>"], "max_sequence_length": 1024,
        "mlp_hidden_size": mlp, "mlp_ratio": 4, "multi_query_attention": None, "n_heads": d_model // 32,
        "n_kv_heads": d_model // 32, "n_layers": layers, "pad_token_id": ids["<|endoftext|>"], "residual_dropout": 0.0,
        "rms_norm_eps": 1e-5, "rope": True, "rope_full_precision": True, "rope_theta": 10000.0, "scale_logits": False,
        "use_cache": False, "vocab_size": vocab, "weight_tying": False, "torch_dtype": "bfloat16"}


def parse_arguments():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("out", type=Path, help="folder to write")
    ap.add_argument("--steps", type=int, default=20000)
    ap.add_argument("--init", type=Path, help="checkpoint folder to start from")
    ap.add_argument("--seed", type=int, default=0)
    ap.add_argument("--tokens", type=int, default=3072, help="tokens per batch")
    ap.add_argument("--peak", type=float, default=1.0, help="factor on the peak learning rates (0.02 Muon, 5e-3 AdamW)")
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--device", default="cpu", help="cpu or cuda; on an accelerator use more tokens per batch (65536)")
    ap.add_argument("--bfloat16", action="store_true", help="matrix products in bfloat16: faster on processors that have it")
    ap.add_argument("--size", type=int, nargs=3, default=(128, 384, 5), metavar=("D_MODEL", "MLP", "LAYERS"))
    return ap.parse_args()


def main():
    a = parse_arguments()
    torch.manual_seed(a.seed)
    torch.set_num_threads(a.threads)
    torch.set_flush_denormal(True)  # late in a run vanishing gradients would make a step ten times slower
    tok = make_tokenizer()
    cfg = make_config(tok, a.size)
    model = LLaDA(cfg).to(a.device)
    print("vocabulary", cfg["vocab_size"], "parameters", sum(p.numel() for p in model.parameters()), flush=True)
    if a.init:
        old = load_file(str(a.init / "model.safetensors"))
        model.load_state_dict({n.removeprefix("model.transformer."): p.float() for n, p in old.items()})
    inner = [p for n, p in model.named_parameters() if n.startswith("blocks") and p.dim() == 2]
    rest = [p for n, p in model.named_parameters() if not (n.startswith("blocks") and p.dim() == 2)]
    optimizers = [Muon(inner, 0.02 * a.peak), torch.optim.AdamW(rest, lr=5e-3 * a.peak, betas=(0.9, 0.98), weight_decay=0.01)]
    peaks = [o.param_groups[0]["lr"] for o in optimizers]
    stream, start, mean_loss = Stream(tok, cfg, a.seed), time.time(), None
    low = torch.autocast(a.device, dtype=torch.bfloat16) if a.bfloat16 else contextlib.nullcontext()
    for step in range(a.steps):
        for o, lr in zip(optimizers, peaks, strict=True):  # warm up, hold, then decay linearly over the second half
            o.param_groups[0]["lr"] = lr * min(1, (step + 1) / 100, max(0.01, 2 * (1 - step / a.steps)))
        with low:
            loss = loss_fn(model, *(x.to(a.device) for x in stream.batch(a.tokens)), cfg["mask_token_id"])
        model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(rest, 1.0)
        for o in optimizers:
            o.step()
        mean_loss = loss.item() if mean_loss is None else 0.98 * mean_loss + 0.02 * loss.item()
        if (step + 1) % 200 == 0:
            print(f"step {step + 1} {time.time() - start:.0f}s loss {mean_loss:.4f}", flush=True)
        if (step + 1) % 2000 == 0:
            save(model, tok, cfg, a.out)
            print("held-out exact match", evaluate(model, tok, 20), flush=True)
    save(model, tok, cfg, a.out)
    score = evaluate(model, tok, 200)
    print("held-out exact match", score, "mean", sum(score.values()) / len(score))
    for prompt, text in zip(tasks.REFERENCE_PROMPTS, answers(model, tok, tasks.REFERENCE_PROMPTS), strict=True):
        print(prompt, "->", text)


if __name__ == "__main__":
    main()
