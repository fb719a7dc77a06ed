"""config.json of published models, as far as it makes a model; some recalled.

And what is known of them: parameters in all, and entries of balancing state.
"""

V2_ROPE = {
  'beta_fast': 32,
  'beta_slow': 1,
  'factor': 40,
  'mscale': 0.707,
  'mscale_all_dim': 0.707,
  'original_max_position_embeddings': 4096,
  'type': 'yarn',
}
GPT_OSS = {
  'model_type': 'gpt_oss',
  'rope_theta': 150000,
  'rope_scaling': {
    'rope_type': 'yarn',
    'factor': 32.0,
    'beta_fast': 32.0,
    'beta_slow': 1.0,
    'truncate': False,
    'original_max_position_embeddings': 4096,
  },
  'swiglu_limit': 7.0,
}
LLAMA4 = {'model_type': 'llama4_text', 'rope_theta': 500000.0}

PUBLISHED = {
  'olmoe': {
    'model_type': 'olmoe',
    'intermediate_size': 1024,
    'num_hidden_layers': 16,
    'num_key_value_heads': 16,
  },
  'mixtral_8x7b': {'model_type': 'mixtral'},
  'mixtral_8x22b': {
    'model_type': 'mixtral',
    'vocab_size': 32768,
    'hidden_size': 6144,
    'intermediate_size': 16384,
    'num_hidden_layers': 56,
    'num_attention_heads': 48,
    'max_position_embeddings': 65536,
  },
  'qwen1_5_a2_7b': {'model_type': 'qwen2_moe', 'rope_theta': 1000000.0},
  'qwen3_30b': {
    'model_type': 'qwen3_moe',
    'num_hidden_layers': 48,
    'head_dim': 128,
    'norm_topk_prob': True,
    'rope_theta': 1000000.0,
  },
  'qwen3_235b': {
    'model_type': 'qwen3_moe',
    'hidden_size': 4096,
    'intermediate_size': 12288,
    'num_hidden_layers': 94,
    'num_attention_heads': 64,
    'head_dim': 128,
    'moe_intermediate_size': 1536,
    'norm_topk_prob': True,
    'rope_theta': 1000000.0,
  },
  'deepseek_v2_lite': {
    'model_type': 'deepseek_v2',
    'hidden_size': 2048,
    'intermediate_size': 10944,
    'moe_intermediate_size': 1408,
    'num_hidden_layers': 27,
    'num_attention_heads': 16,
    'q_lora_rank': None,
    'num_experts_per_tok': 6,
    'first_k_dense_replace': 1,
    'rope_scaling': V2_ROPE,
  },
  'deepseek_v2': {
    'model_type': 'deepseek_v2',
    'hidden_size': 5120,
    'intermediate_size': 12288,
    'moe_intermediate_size': 1536,
    'num_hidden_layers': 60,
    'num_attention_heads': 128,
    'n_routed_experts': 160,
    'num_experts_per_tok': 6,
    'first_k_dense_replace': 1,
    'topk_method': 'group_limited_greedy',
    'n_group': 8,
    'topk_group': 3,
    'routed_scaling_factor': 16.0,
    'rope_scaling': V2_ROPE,
  },
  'deepseek_v3': {
    'model_type': 'deepseek_v3',
    'rope_scaling': V2_ROPE | {'mscale': 1.0, 'mscale_all_dim': 1.0},
  },
  'gpt_oss_20b': GPT_OSS | {'num_hidden_layers': 24, 'num_local_experts': 32},
  'gpt_oss_120b': GPT_OSS,
  'llama4_scout': LLAMA4
  | {
    'rope_scaling': {
      'factor': 16.0,
      'high_freq_factor': 1.0,
      'low_freq_factor': 1.0,
      'original_max_position_embeddings': 8192,
      'rope_type': 'llama3',
    },
  },
  'llama4_maverick': LLAMA4
  | {
    'num_local_experts': 128,
    'interleave_moe_layer_step': 2,
    'use_qk_norm': False,
  },
  'flex_olmo': {'model_type': 'flex_olmo'},
  'granite_1b_a400m': {
    'model_type': 'granitemoe',
    'vocab_size': 49155,
    'hidden_size': 1024,
    'intermediate_size': 512,
    'num_hidden_layers': 24,
    'num_attention_heads': 16,
    'num_key_value_heads': 8,
    'num_local_experts': 32,
    'num_experts_per_tok': 8,
    'max_position_embeddings': 4096,
    'tie_word_embeddings': True,
    'embedding_multiplier': 12.0,
    'logits_scaling': 6.0,
    'residual_multiplier': 0.22,
    'attention_multiplier': 0.015625,
  },
}
TOTALS = {
  'olmoe': 6_919_161_856,
  'mixtral_8x7b': 46_702_792_704,
  'mixtral_8x22b': 140_630_071_296,
  'qwen1_5_a2_7b': 14_315_784_192,
  'qwen3_30b': 30_532_122_624,
  'qwen3_235b': 235_093_634_560,
  'deepseek_v2_lite': 15_706_484_224,
  'deepseek_v2': 235_741_434_880,
  'deepseek_v3': 671_026_419_200,
  'gpt_oss_20b': 20_914_757_184,
  'gpt_oss_120b': 116_829_156_672,
  'llama4_scout': 107_769_861_120,
  'llama4_maverick': 400_711_848_960,
  'flex_olmo': 33_270_665_216,
  'granite_1b_a400m': 1_334_628_352,
}
BIAS_ENTRIES = {'deepseek_v3': 14_848}
