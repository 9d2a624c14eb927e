#!/usr/bin/env python3
"""Make tests/fixtures/golden/tiny-lalamo: a random model that lalamo itself quantized and saved, and lalamo's logits.

    python3 -m venv V && V/bin/pip install lalamo==0.17.0 "jax[cpu]==0.12.0"        (Python 3.12 or later)
    V/bin/python3 tools/lalamo_fixtures.py tests/fixtures/golden

Three layers, each matrix stored in another way: HybridSpec of int4 with zero points and a low-rank adapter, rotated on both
sides, in bfloat16; HybridSpec of symmetric int8 without adapter, rotated on its input, in blocks of 64; IntSpec without a
rotation; FullPrecisionSpec. The second layer has a window, the third is a short convolution. The head is HybridSpec of int8. Everything is
computed in float32.
"""
import sys

import jax
import jax.numpy as jnp
import numpy as np
from lalamo.compressed import HybridSpec, IntSpec, LowRankSpec
from lalamo.compressed.hybrid import IncoherenceProcessingMode
from lalamo.initializer import RandomInitializer
from lalamo.models import LanguageModelConfig
from lalamo.models.chat_codec import ChatCodecConfig
from lalamo.models.language_model import GenerationConfig
from lalamo.module import Keychain
from lalamo.modules.activations import SiLU
from lalamo.modules.decoder import DecoderConfig, DecoderForwardPassConfig
from lalamo.modules.embedding import UntiedEmbeddingConfig
from lalamo.modules.linear import LinearConfig
from lalamo.modules.mlp import DenseMLPConfig
from lalamo.modules.normalization import NormalizationConfig, UpcastMode
from lalamo.modules.rope import LlamaRoPEConfig
from lalamo.modules.token_mixers.attention import AttentionConfig
from lalamo.modules.token_mixers.convolutions import SeparableCausalConvConfig
from lalamo.modules.token_mixers.short_conv import ShortConvConfig
from lalamo.modules.transformer import TransformerConfig
from lalamo.modules.transformer_layer import TransformerLayerConfig
from lalamo.utils.sharding import ShardingConfig
from lalamo.weight_matrix import WeightMatrix
from safetensors.numpy import save_file
from tokenizers import Tokenizer

PROMPT, TOKENS = 16, 64
POSITIONS = [0, 1, 7, 8, 20, 41, 63]
TEXT = "It was a bright cold day in the mountains, and the two of them had walked since the first light."
HIDDEN, HEADS, GROUPS, HEAD, WIDE, VOCAB, LAYERS = 64, 2, 1, 32, 96, 256, 3

BOTH, INPUT = IncoherenceProcessingMode.INPUT_OUTPUT, IncoherenceProcessingMode.INPUT
INT4 = HybridSpec(IntSpec(4, 32, is_symmetric=False), LowRankSpec(4), 32, BOTH)
INT8 = HybridSpec(IntSpec(8, 32, is_symmetric=True), None, 64, INPUT)
PLAIN = IntSpec(4, 32, is_symmetric=True)
SPECS = {  # by a part of the path
    "layers.0.": INT4,
    "layers.1.mixer": INT8,
    "layers.1.mlp": HybridSpec(IntSpec(8, 32, is_symmetric=False), LowRankSpec(3), 32, BOTH),
    "layers.2.mlp.up_projection": PLAIN,
    "layers.2.mixer.in_projection": INT4,
    "output_embedding": HybridSpec(IntSpec(8, 64, is_symmetric=False), None, 32, INPUT),
}


def config():
    norm = NormalizationConfig(1e-5, None, UpcastMode.ONLY_NORMALIZATION, subtract_mean=False)
    rope = LlamaRoPEConfig(base=1000.0, max_sequence_length=128, head_dim=HEAD, scaling_factor=4.0,
                           original_context_length=32, low_frequency_factor=1.0, high_frequency_factor=4.0)
    mlp = DenseMLPConfig(LinearConfig(), SiLU(), has_up_biases=False, has_down_biases=False, gate_clipping=None,
                         up_clipping=None)
    convolution = ShortConvConfig(LinearConfig(), SeparableCausalConvConfig(has_biases=False), LinearConfig(), 3)

    def layer(i):
        attention = AttentionConfig(
            qkvg_projection_config=LinearConfig(), out_projection_config=LinearConfig(), query_norm_config=norm,
            key_norm_config=norm, num_heads=HEADS, num_groups=GROUPS, head_dim=HEAD, is_causal=True, scale=None,
            sliding_window_size=8 if i == 1 else None, logit_soft_cap=None, has_sinks=False, has_qkvg_biases=True,
            has_out_biases=False)
        return TransformerLayerConfig(
            pre_mixer_norm_config=norm, mixer_config=convolution if i == 2 else attention, post_mixer_norm_config=None,
            pre_mlp_norm_config=norm, mlp_config=mlp, post_mlp_norm_config=None, rope_config=None if i == 2 else rope)

    decoder = DecoderConfig(
        UntiedEmbeddingConfig(input_scale=None, logit_soft_cap=None),
        TransformerConfig(tuple(layer(i) for i in range(LAYERS)), norm, HIDDEN, WIDE), VOCAB)
    codec = ChatCodecConfig(prompt_template="{% for m in messages %}{{ m.content }}{% endfor %}", output_parser_regex=None,
                            system_role_name="system", user_role_name="user", assistant_role_name="assistant",
                            eos_token=None, bos_token=None)
    return LanguageModelConfig(codec, decoder, GenerationConfig(stop_token_ids=(0,), temperature=0.7, top_k=20))


def spec_of(path):
    return next((spec for part, spec in SPECS.items() if part in path), None)


def dotted(path):
    return ".".join(str(getattr(p, "name", getattr(p, "idx", getattr(p, "key", p)))) for p in path)


def randomize(model, sharding):
    """Random norms, biases and kernels; matrices in the specs above."""
    keys = iter(jax.random.split(jax.random.key(1), 1000))

    def change(path, leaf):
        name = dotted(path)
        if isinstance(leaf, WeightMatrix):
            weights = leaf.decompress() * (2.0 if "qkvg" in name or "output_embedding" in name else 1.2)
            spec = spec_of(name)
            if spec is None:
                return leaf.spec.compress(weights, sharding_config=sharding)
            matrix = spec.compress(weights, key=next(keys), sharding_config=sharding)
            if isinstance(spec, HybridSpec) and spec.adapter_spec:  # as in training: no longer the residual
                adapter = matrix.adapter
                object.__setattr__(adapter, "down_projection", jax.random.normal(next(keys), adapter.down_projection.shape) * 0.1)
                object.__setattr__(adapter, "up_projection", jax.random.normal(next(keys), adapter.up_projection.shape) * 0.5)
            return matrix.astype(jnp.bfloat16) if "layers.0." in name else matrix
        if not isinstance(leaf, jax.Array):
            return leaf
        if "norm" in name:
            return 1 + 0.3 * jax.random.normal(next(keys), leaf.shape)
        return 0.3 * jax.random.normal(next(keys), leaf.shape)

    return jax.tree_util.tree_map_with_path(change, model, is_leaf=lambda x: isinstance(x, WeightMatrix))


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    out, sharding = sys.argv[1], ShardingConfig.replicated()
    tokenizer = Tokenizer.from_file(f"{out}/tiny-qwen3-moe/tokenizer.json")
    initializer = RandomInitializer(jnp.float32, sharding, key=jax.random.key(0))
    model = randomize(config().init(tokenizer, initializer), sharding)
    model.save(f"{out}/tiny-lalamo")

    def logits_of(ids):
        tokens = jnp.asarray(ids, dtype=jnp.int32)[None]
        result = model.decoder(tokens, jnp.arange(len(ids), dtype=jnp.int32)[None],
                               forward_pass_config=DecoderForwardPassConfig.for_tracer_tests(),
                               keychain=Keychain.init(0, sharding_config=sharding))
        return np.asarray(result.logits[0], dtype=np.float64)

    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    order = {b: i for i, b in enumerate(printable + [b for b in range(256) if b not in printable])}
    ids = [order[b] for b in TEXT.encode()[:TOKENS]]
    logits = logits_of(ids)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    greedy, least = ids[:PROMPT], np.inf
    for _ in range(TOKENS - PROMPT):
        padded = greedy + [0] * (TOKENS - len(greedy))  # one shape to compile; later tokens change nothing
        last = np.sort(logits_of(padded)[len(greedy) - 1])
        least = min(least, last[-1] - last[-2])
        greedy.append(int(logits_of(padded)[len(greedy) - 1].argmax()))
    save_file({"input_ids": np.array(ids, np.int32), "positions": np.array(POSITIONS, np.int32),
               "logits": logits[POSITIONS].astype(np.float32), "greedy_ids": np.array(greedy, np.int32),
               "target_logprobs": log_p[np.arange(TOKENS - 1), ids[1:]].astype(np.float32)},
              f"{out}/tiny-lalamo.safetensors")
    print(f"smallest margin of a greedy token {least:.2e}, largest logit {abs(logits).max():.1f}")


if __name__ == "__main__":
    main()
