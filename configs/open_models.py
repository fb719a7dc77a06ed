"""Open mixtures of experts as they are published: described, not trained.

  python -m experiments.describe --config=configs/open_models.py:deepseek_v3 \\
      --mesh='exact(expert=64)' --noparams

What `moe_jax.conversion` makes of their config.json, some of them recalled; the
parameters are the published ones, which a test counts. Folders with weights
come in by `experiments.convert`.
"""

from configs import base

COMMON = {
  'model': {
    'd_head': 128,
    'dropout': 0.0,
    'embedding_scale': 1.0,
    'ffn': "glu(activation='silu')",
    'kind': 'decoder',
    'logit_scale': 1.0,
    'norm_at': 'input',
    'norm_eps': 1e-06,
    'norm_scale': True,
    'qk_norm': False,
    'residual_scale': 1.0,
    'tied_head': False,
  },
  'moe': {
    'layers': 'all',
    'balance': ("switch_loss(weight=0.001, count='union')",),
    'capacity_factor': 0.0,
    'dense_branch': 'none',
    'eval_capacity_factor': 0.0,
    'experts': "glu(activation='silu')",
    'extra_ffn': 'none',
    'local_experts': (),
    'route_padding': False,
    'share_experts': 1,
  },
}
_DEEPSEEK_POSITIONS = (
  "rope(base=10000.0, scaling='yarn(factor=40.0, "
  "original_length=4096, attention_factor=1.0)', "
  'interleaved=True)'
)
_GPT_OSS = {
  'model': {
    'vocab_size': 201088,
    'd_model': 2880,
    'num_heads': 64,
    'd_head': 64,
    'd_ff': 2880,
    'attention': (
      "window(size=128, kv_heads=8, bias='all', sinks=True)",
      "full(kv_heads=8, bias='all', sinks=True)",
    ),
    'norm_eps': 1e-05,
    'positions': (
      "rope(base=150000.0, scaling='yarn(factor=32.0, "
      "original_length=4096, truncate=False)')"
    ),
  },
  'moe': {
    'd_ff': 2880,
    'experts': 'clamped_glu(alpha=1.702, limit=7.0)',
    'router': 'gpt_oss(k=4)',
  },
}
MODELS = {
  'olmoe': {
    'model': {
      'vocab_size': 50304,
      'num_layers': 16,
      'd_model': 2048,
      'num_heads': 16,
      'd_ff': 1024,
      'attention': ("full(kv_heads=16, qk_norm='width')",),
      'norm_eps': 1e-05,
      'positions': 'rope(base=10000.0)',
    },
    'moe': {
      'num_experts': 64,
      'd_ff': 1024,
      'balance': ("switch_loss(weight=0.01, count='union')",),
      'router': 'top_k(k=8, renormalize=False)',
    },
  },
  'mixtral_8x7b': {
    'model': {
      'vocab_size': 32000,
      'num_layers': 32,
      'd_model': 4096,
      'num_heads': 32,
      'd_ff': 14336,
      'attention': ('full(kv_heads=8)',),
      'norm_eps': 1e-05,
      'positions': 'rope(base=1000000.0)',
    },
    'moe': {
      'num_experts': 8,
      'd_ff': 14336,
      'router': 'top_k(k=2, renormalize=True)',
    },
  },
  'mixtral_8x22b': {
    'model': {
      'vocab_size': 32768,
      'num_layers': 56,
      'd_model': 6144,
      'num_heads': 48,
      'd_ff': 16384,
      'attention': ('full(kv_heads=8)',),
      'norm_eps': 1e-05,
      'positions': 'rope(base=1000000.0)',
    },
    'moe': {
      'num_experts': 8,
      'd_ff': 16384,
      'router': 'top_k(k=2, renormalize=True)',
    },
  },
  'qwen1_5_a2_7b': {
    'model': {
      'vocab_size': 151936,
      'num_layers': 24,
      'd_model': 2048,
      'num_heads': 16,
      'd_ff': 5632,
      'attention': ("full(kv_heads=16, bias='qkv')",),
      'positions': 'rope(base=1000000.0)',
    },
    'moe': {
      'num_experts': 60,
      'd_ff': 1408,
      'dense_branch': 'gated',
      'dense_branch_d_ff': 5632,
      'router': 'top_k(k=4, renormalize=False)',
    },
  },
  'qwen3_30b': {
    'model': {
      'vocab_size': 151936,
      'num_layers': 48,
      'd_model': 2048,
      'num_heads': 32,
      'd_ff': 6144,
      'attention': ("full(kv_heads=4, qk_norm='head')",),
      'positions': 'rope(base=1000000.0)',
    },
    'moe': {
      'num_experts': 128,
      'd_ff': 768,
      'router': 'top_k(k=8, renormalize=True)',
    },
  },
  'qwen3_235b': {
    'model': {
      'vocab_size': 151936,
      'num_layers': 94,
      'd_model': 4096,
      'num_heads': 64,
      'd_ff': 12288,
      'attention': ("full(kv_heads=4, qk_norm='head')",),
      'positions': 'rope(base=1000000.0)',
    },
    'moe': {
      'num_experts': 128,
      'd_ff': 1536,
      'router': 'top_k(k=8, renormalize=True)',
    },
  },
  'deepseek_v2_lite': {
    'model': {
      'vocab_size': 102400,
      'num_layers': 27,
      'd_model': 2048,
      'num_heads': 16,
      'd_head': 64,
      'd_ff': 10944,
      'attention': (
        (
          'mla(kv_rank=512, d_nope=128, d_rope=64, d_value=128, '
          'scale=0.1147213867929261)'
        ),
      ),
      'positions': _DEEPSEEK_POSITIONS,
    },
    'moe': {
      'layers': 'from_1',
      'num_experts': 64,
      'd_ff': 1408,
      'dense_branch': 'shared',
      'dense_branch_d_ff': 2816,
      'router': (
        "sigmoid_top_k(k=6, score='softmax', renormalize=False, "
        "scaling=1.0, group_score='max')"
      ),
    },
  },
  'deepseek_v2': {
    'model': {
      'vocab_size': 102400,
      'num_layers': 60,
      'd_model': 5120,
      'num_heads': 128,
      'd_head': 64,
      'd_ff': 12288,
      'attention': (
        (
          'mla(kv_rank=512, d_nope=128, d_rope=64, d_value=128, '
          'q_rank=1536, scale=0.1147213867929261)'
        ),
      ),
      'positions': _DEEPSEEK_POSITIONS,
    },
    'moe': {
      'layers': 'from_1',
      'num_experts': 160,
      'd_ff': 1536,
      'dense_branch': 'shared',
      'dense_branch_d_ff': 3072,
      'router': (
        "sigmoid_top_k(k=6, score='softmax', renormalize=False, "
        'scaling=16.0, groups=8, kept_groups=3, '
        "group_score='max')"
      ),
    },
  },
  'deepseek_v3': {
    'model': {
      'vocab_size': 129280,
      'num_layers': 61,
      'd_model': 7168,
      'num_heads': 128,
      'd_head': 64,
      'd_ff': 18432,
      'attention': (
        (
          'mla(kv_rank=512, d_nope=128, d_rope=64, d_value=128, '
          'q_rank=1536, scale=0.1352337788608801)'
        ),
      ),
      'positions': _DEEPSEEK_POSITIONS,
    },
    'moe': {
      'layers': 'from_3',
      'num_experts': 256,
      'd_ff': 2048,
      'balance': ('loss_free_bias(rate=0.001)',),
      'dense_branch': 'shared',
      'dense_branch_d_ff': 2048,
      'router': (
        'sigmoid_top_k(k=8, renormalize=True, scaling=2.5, '
        'groups=8, kept_groups=4)'
      ),
    },
  },
  'gpt_oss_20b': {
    'model': _GPT_OSS['model'] | {'num_layers': 24},
    'moe': _GPT_OSS['moe'] | {'num_experts': 32},
  },
  'gpt_oss_120b': {
    'model': _GPT_OSS['model'] | {'num_layers': 36},
    'moe': _GPT_OSS['moe'] | {'num_experts': 128},
  },
  'llama4_scout': {
    'model': {
      'vocab_size': 202048,
      'num_layers': 48,
      'd_model': 5120,
      'num_heads': 40,
      'd_ff': 16384,
      'attention': (
        "chunk(size=8192, kv_heads=8, qk_norm='turned')",
        "chunk(size=8192, kv_heads=8, qk_norm='turned')",
        "chunk(size=8192, kv_heads=8, qk_norm='turned')",
        ("full(kv_heads=8, positions='none', temperature=(8192, 0.1))"),
      ),
      'norm_eps': 1e-05,
      'positions': (
        "rope(base=500000.0, scaling='llama3(factor=16.0, "
        "low=1.0, high=1.0, original_length=8192)', "
        'interleaved=True)'
      ),
    },
    'moe': {
      'num_experts': 16,
      'd_ff': 8192,
      'dense_branch': 'shared',
      'dense_branch_d_ff': 8192,
      'router': 'llama4(k=1)',
    },
  },
  'llama4_maverick': {
    'model': {
      'vocab_size': 202048,
      'num_layers': 48,
      'd_model': 5120,
      'num_heads': 40,
      'd_ff': 16384,
      'attention': (
        'chunk(size=8192, kv_heads=8)',
        'chunk(size=8192, kv_heads=8)',
        'chunk(size=8192, kv_heads=8)',
        ("full(kv_heads=8, positions='none', temperature=(8192, 0.1))"),
      ),
      'norm_eps': 1e-05,
      'positions': 'rope(base=500000.0, interleaved=True)',
    },
    'moe': {
      'layers': 'every_2',
      'num_experts': 128,
      'd_ff': 8192,
      'dense_branch': 'shared',
      'dense_branch_d_ff': 8192,
      'router': 'llama4(k=1)',
    },
  },
  'flex_olmo': {
    'model': {
      'vocab_size': 100352,
      'num_layers': 32,
      'd_model': 4096,
      'num_heads': 32,
      'd_ff': 11008,
      'attention': ("full(kv_heads=32, qk_norm='width')",),
      'norm_at': 'output',
      'positions': 'rope(base=500000.0)',
    },
    'moe': {
      'num_experts': 7,
      'd_ff': 11008,
      'balance': ("switch_loss(weight=0.01, count='union')",),
      'router': 'top_k(k=5, renormalize=False)',
    },
  },
  'granite_1b_a400m': {
    'model': {
      'vocab_size': 49155,
      'num_layers': 24,
      'd_model': 1024,
      'num_heads': 16,
      'd_head': 64,
      'd_ff': 512,
      'attention': ('full(kv_heads=8, scale=0.015625)',),
      'embedding_scale': 12.0,
      'logit_scale': 0.16666666666666666,
      'positions': 'rope(base=10000.0)',
      'residual_scale': 0.22,
      'tied_head': True,
    },
    'moe': {
      'num_experts': 32,
      'd_ff': 512,
      'router': 'top_k(k=8, renormalize=True)',
    },
  },
}


def get_config(arg='olmoe'):
  """The config; `arg` is one of MODELS."""
  name = arg or 'olmoe'
  if name not in MODELS:
    raise ValueError(
      f'open_models has no model {name!r}; valid: {", ".join(MODELS)}'
    )
  config = base.get_config()
  for group, own in MODELS[name].items():
    config[group].update(COMMON[group] | own)
  ids = config.model.vocab_size  # of what tokens is in no config.json
  config.data.update(seq_len=1024, tokenizer=f'hf(size={ids}, sentinels=0)')
  config.moe.update(group_size=1024, dispatch='gather_reduce()')
  return config.lock()
