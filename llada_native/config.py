"""config.json -> a validated `ModelConfig`. Unknown or unsupported things are refused by name, never guessed."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import ModelFormatError, UnsupportedModelError
from .families import FAMILIES, LLADA, OTHER_NAMES, Family

LARGEST_DIMENSION = 1 << 24
LARGEST_LAYERS = 1 << 12
LARGEST_EXPERTS = 1 << 12
LARGEST_NUMBER = 1e30


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a LLaDA.

    Attributes
    ----------
    vocabulary : int
        Rows of the embedding and of the head; may exceed the number of tokens.
    mask_token_id, eos_token_id, eot_token_id : int or None
        Special tokens as far as config.json names them.
    dtype : str or None
        Of the published weights, as config.json states it.
    qk_norm : bool
        Queries and keys are normalised head by head, before RoPE.
    qkv_bias : bool
        Queries, keys and values have a bias, which is added before that.
    shifted_logits : bool
        The row before a position predicts its token, as in the autoregressive models that such a model grew from; the first row predicts
        the first token and the second. The package shifts them: all its logits are those of their own positions.
    n_experts, experts_per_token, expert_hidden_size : int
        Of a mixture of experts, 0 without.
    dense_layers : tuple of int
        Layers of a mixture, ascending, that have an MLP of `mlp_hidden_size` all the same.
    routing : {"softmax", "sigmoid"}
        How a router's scores become the experts of a row: the most probable, with their probabilities as weights, or the largest sigmoids
        plus a bias among the best groups, weighted with their share of the chosen sigmoids times `expert_scale`.
    expert_groups, chosen_groups : int
        Groups of consecutive experts, and those that a row's experts are chosen from: with the greatest sums of their two largest scores.
    shared_expert_hidden_size : int
        Of an MLP that every row goes through beside its experts, 0 without.
    head_dim, rotary_dim : int
        Width of a head, and how much of it RoPE turns; by default `d_model` / `n_heads` and all of it.
    attention_block : int
        Rows see the blocks of so many positions up to their own, counted from position 0; 0: all rows of their request.
    """

    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    mlp_hidden_size: int
    vocabulary: int
    max_sequence_length: int
    rope_theta: float
    rms_norm_eps: float
    weight_tying: bool
    mask_token_id: int | None = None
    eos_token_id: int | None = None
    eot_token_id: int | None = None
    dtype: str | None = None
    architecture: str = "LLaDAModelLM"
    qk_norm: bool = False
    qkv_bias: bool = False
    shifted_logits: bool = False
    n_experts: int = 0
    experts_per_token: int = 0
    expert_hidden_size: int = 0
    dense_layers: tuple[int, ...] = ()
    routing: str = "softmax"
    expert_groups: int = 1
    chosen_groups: int = 1
    expert_scale: float = 1.0
    shared_expert_hidden_size: int = 0
    head_dim: int = 0
    rotary_dim: int = 0
    attention_block: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "head_dim", self.head_dim or self.d_model // self.n_heads)
        object.__setattr__(self, "rotary_dim", self.rotary_dim or self.head_dim)

    def has_experts(self, layer: int) -> bool:
        return self.n_experts > 0 and layer not in self.dense_layers

    def routers(self) -> int:
        """Parameters that choose between experts."""
        return sum(self.has_experts(i) for i in range(self.n_layers)) * self.n_experts * self.d_model

    def matrices(self) -> int:
        """Parameters in matrices, the embedding, an untied head, all experts and their routers included."""
        attention = 2 * self.d_model * (self.n_heads + self.n_kv_heads) * self.head_dim
        mixture = self.n_experts * self.expert_hidden_size + self.shared_expert_hidden_size
        widths = (mixture if self.has_experts(i) else self.mlp_hidden_size for i in range(self.n_layers))
        table = self.vocabulary * self.d_model
        return self.n_layers * attention + 3 * self.d_model * sum(widths) + self.routers() + table * (1 if self.weight_tying else 2)

    def n_parameters(self) -> int:
        norms = 2 * self.d_model + (2 * self.head_dim if self.qk_norm else 0)
        biases = (self.n_heads + 2 * self.n_kv_heads) * self.head_dim if self.qkv_bias else 0
        router_biases = self.routers() // self.d_model if self.routing == "sigmoid" else 0
        return self.matrices() + self.n_layers * (norms + biases) + router_biases + self.d_model

    @classmethod
    def from_dict(cls, config: Mapping[str, Any], source: str = "config.json") -> ModelConfig:
        """Read a Hugging Face configuration.

        Raises
        ------
        ModelFormatError
            A required key is absent or has an impossible value.
        UnsupportedModelError
            The architecture or one of its options is not implemented.
        """
        return _Reader(config, source).model_config()


class _Reader:
    """Typed access to the keys of one configuration; every complaint names the file and the key."""

    def __init__(self, config: Mapping[str, Any], source: str) -> None:
        self.config, self.source = config, source

    def model_config(self) -> ModelConfig:
        architecture = self.architecture()
        family = FAMILIES[architecture]
        key = family.keys
        self.refuse_relatives(family)
        self.merge_rope_parameters()
        self.check_options(family)
        n_heads, d_model = self.integer(key["n_heads"]), self.integer(key["d_model"])
        n_kv_heads = self.kv_heads(family, n_heads)
        vocabulary = vocab_size = self.integer(key["vocab_size"])
        if "embedding_size" in key:
            vocabulary = self.integer(key["embedding_size"], default=vocab_size)
            if vocabulary < vocab_size:
                raise self.wrong(key["embedding_size"], f"at least {key['vocab_size']} ({vocab_size})", vocabulary)
        head_dim = self.head_dim(family, d_model, n_heads)
        if n_heads % n_kv_heads:
            raise self.wrong(key["n_kv_heads"], f"a divisor of {key['n_heads']} ({n_heads})", n_kv_heads)
        n_layers = self.integer(key["n_layers"], largest=LARGEST_LAYERS)
        return ModelConfig(
            n_layers=n_layers,
            d_model=d_model,
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            mlp_hidden_size=self.integer(key["mlp_hidden_size"]),
            vocabulary=vocabulary,
            max_sequence_length=self.integer(key["max_sequence_length"]),
            rope_theta=self.positive(key["rope_theta"]),
            rms_norm_eps=self.positive(key["rms_norm_eps"]),
            weight_tying="weight_tying" in key and self.boolean(key["weight_tying"]),
            mask_token_id=self.token("mask_token_id", vocabulary, family.mask_token_id),
            eos_token_id=self.token("eos_token_id", vocabulary, family.eos_token_id),
            eot_token_id=self.token("eot_token_id", vocabulary),
            dtype=self.dtype(),
            architecture=architecture,
            head_dim=head_dim,
            rotary_dim=self.rotary_dim(family, head_dim) if "rotary_share" in key else head_dim,
            attention_block=family.attention_block,
            qkv_bias=family.qkv_bias,
            shifted_logits=family.shifted_logits,
            **(self.experts(family, n_layers) if "n_experts" in key else {}),
        )

    def merge_rope_parameters(self) -> None:
        """Newer versions of transformers write what concerns RoPE into an object of its own."""
        name, known = "rope_parameters", ("rope_theta", "partial_rotary_factor")
        settings = self.config.get(name)
        if settings is None:
            return
        if not isinstance(settings, dict):
            raise self.wrong(name, "an object", settings)
        settings = dict(settings)
        for kind in ("rope_type", "type"):
            if settings.pop(kind, "default") != "default":
                raise self.unsupported(f"{name}.{kind}", self.config[name][kind], "'default'")
        for key, value in settings.items():
            if key not in known:
                raise self.unsupported(f"{name}.{key}", value, f"only {' and '.join(known)}")
            if self.config.get(key) not in (None, value):
                raise self.wrong(f"{name}.{key}", f"{key} ({self.config[key]!r})", value)
        self.config = {**self.config, **settings}

    def head_dim(self, family: Family, d_model: int, n_heads: int) -> int:
        key = family.keys
        stated = self.config.get("head_dim")
        if "head_dim" in key and stated is not None:
            head_dim = self.integer(key["head_dim"])
            if head_dim % 2 or head_dim > 256:
                raise self.wrong(key["head_dim"], "an even number up to 256", head_dim)
            return head_dim
        if d_model % n_heads:
            raise self.wrong(key["d_model"], f"a multiple of {key['n_heads']} ({n_heads})", d_model)
        head_dim = d_model // n_heads
        if head_dim % 2 or head_dim > 256:
            raise self.wrong(f"{key['d_model']} / {key['n_heads']}", "an even number up to 256", head_dim)
        if stated not in (None, head_dim):
            raise self.wrong("head_dim", f"{key['d_model']} / {key['n_heads']} ({head_dim})", stated)
        return head_dim

    def rotary_dim(self, family: Family, head_dim: int) -> int:
        key = family.keys["rotary_share"]
        share = self.positive(key)
        rotary_dim = int(head_dim * share)
        if share > 1 or rotary_dim < 2 or rotary_dim % 2:
            raise self.wrong(key, f"an even number of dimensions up to {head_dim} (head_dim), as its share", share)
        if self.config.get(family.keys["rotary_dim"]) not in (None, rotary_dim):
            raise self.wrong(family.keys["rotary_dim"], f"{rotary_dim} (head_dim * {key})", self.config[family.keys["rotary_dim"]])
        return rotary_dim

    def experts(self, family: Family, n_layers: int) -> dict[str, Any]:
        key = family.keys
        n_experts, chosen = self.integer(key["n_experts"], largest=LARGEST_EXPERTS), self.integer(key["experts_per_token"])
        if chosen > n_experts:
            raise self.wrong(key["experts_per_token"], f"at most {key['n_experts']} ({n_experts})", chosen)
        found = {"qk_norm": True, "n_experts": n_experts, "experts_per_token": chosen,
                 "expert_hidden_size": self.integer(key["expert_hidden_size"])}
        if "dense_first" in key:
            dense = self.integer(key["dense_first"], least=0, largest=n_layers)
            return {**found, **self.groups(family, n_experts, chosen), "dense_layers": tuple(range(dense))}
        kinds = self.config.get(key["moe_layers"])
        if key["moe_layers"] not in self.config:
            raise self.missing(key["moe_layers"])
        if not (isinstance(kinds, list) and len(kinds) == n_layers and all(type(kind) is int and kind in (0, 1) for kind in kinds)):
            raise self.wrong(key["moe_layers"], f"a list of {n_layers} numbers ({key['n_layers']}), each 0 or 1", kinds)
        return {**found, "dense_layers": tuple(i for i, kind in enumerate(kinds) if kind == 0)}

    def groups(self, family: Family, n_experts: int, chosen: int) -> dict[str, Any]:
        """Routing by sigmoids in groups, and the experts that all rows share."""
        key = family.keys
        groups = self.integer(key["expert_groups"])
        chosen_groups = self.integer(key["chosen_groups"])
        if n_experts % groups:
            raise self.wrong(key["expert_groups"], f"a divisor of {key['n_experts']} ({n_experts})", groups)
        if chosen_groups > groups:
            raise self.wrong(key["chosen_groups"], f"at most {key['expert_groups']} ({groups})", chosen_groups)
        if n_experts // groups < 2:
            raise self.wrong(key["expert_groups"], f"at most {n_experts // 2} (two experts a group, which are its score)", groups)
        if chosen > chosen_groups * (n_experts // groups):
            raise self.wrong(key["experts_per_token"], f"at most {chosen_groups * (n_experts // groups)} (experts of {chosen_groups} "
                             f"groups, {key['chosen_groups']})", chosen)
        if key["shared_experts"] not in self.config:
            raise self.missing(key["shared_experts"])
        shared = 0 if self.config[key["shared_experts"]] is None else self.integer(key["shared_experts"], least=0, largest=LARGEST_EXPERTS)
        return {"routing": "sigmoid", "expert_groups": groups, "chosen_groups": chosen_groups,
                "expert_scale": self.positive(key["expert_scale"]),
                "shared_expert_hidden_size": shared * self.integer(key["expert_hidden_size"])}

    def architecture(self) -> str:
        architectures = self.config.get("architectures")
        if not (isinstance(architectures, list) and architectures and isinstance(architectures[0], str)):
            raise self.wrong("architectures", "a list whose first entry names the model class", architectures)
        name: str = OTHER_NAMES.get(architectures[0], architectures[0])
        if name not in FAMILIES:
            raise UnsupportedModelError(f"{self.source}: unknown architecture {name!r}; this version runs {', '.join(FAMILIES)}")
        return name

    def refuse_relatives(self, family: Family) -> None:
        for key, reason in family.refused.items():
            if self.config.get(key) is not None:
                raise UnsupportedModelError(f"{self.source}: {key} = {self.config[key]!r} is not supported: it is {reason}")

    def check_options(self, family: Family) -> None:
        for key in family.required:
            if key not in self.config:
                raise self.missing(key)
        for key, allowed in family.fixed.items():
            if key in self.config and not any(self.config[key] is a or self.config[key] == a for a in allowed):
                raise self.unsupported(key, self.config[key], " or ".join(map(repr, allowed)))

    def kv_heads(self, family: Family, n_heads: int) -> int:
        key = family.keys["n_kv_heads"]
        if family is LLADA and self.config.get(key) is None:
            return 1 if self.config.get("multi_query_attention") else n_heads
        return self.integer(key)

    def integer(self, key: str, default: int | None = None, largest: int = LARGEST_DIMENSION, least: int = 1) -> int:
        value = self.config.get(key)
        if value is None and default is not None:
            return default
        if key not in self.config:
            raise self.missing(key)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= largest:
            raise self.wrong(key, f"a whole number from {least} to {largest}", value)
        return value

    def positive(self, key: str) -> float:
        if key not in self.config:
            raise self.missing(key)
        value = self.config[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= LARGEST_NUMBER:
            raise self.wrong(key, f"a number above 0 and up to {LARGEST_NUMBER:g}", value)
        return float(value)

    def boolean(self, key: str) -> bool:
        if key not in self.config:
            raise self.missing(key)
        value = self.config[key]
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false", value)
        return value

    def token(self, key: str, vocabulary: int, default: int | None = None) -> int | None:
        value = self.config.get(key)
        if value is None:
            return default if default is not None and default < vocabulary else None
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < vocabulary:
            raise self.wrong(key, f"a token id from 0 to {vocabulary - 1}", value)
        return value

    def dtype(self) -> str | None:
        value = self.config.get("torch_dtype", self.config.get("dtype"))
        return value if isinstance(value, str) else None

    def unsupported(self, key: str, found: object, expected: str) -> UnsupportedModelError:
        return UnsupportedModelError(f"{self.source}: {key} = {found!r} is not supported: expected {expected}")

    def missing(self, key: str) -> ModelFormatError:
        return ModelFormatError(f"{self.source}: required key {key!r} is missing")

    def wrong(self, key: str, expected: str, found: object) -> ModelFormatError:
        return ModelFormatError(f"{self.source}: {key}: expected {expected}, found {found!r}")
