"""A byte-level Switch language model on the standard library's own text."""

import ml_collections


def get_config(arg=''):
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.cpu_devices = 8
  config.mesh = 'auto(expert=4)'

  config.model = ml_collections.ConfigDict()
  config.model.kind = 'decoder'
  config.model.num_layers = 4
  config.model.d_model = 128
  config.model.num_heads = 4
  config.model.d_head = 32
  config.model.d_ff = 512
  config.model.ffn = "mlp(activation='gelu')"
  config.model.positions = 'rope'
  config.model.qk_norm = True
  config.model.tied_head = True
  config.model.dropout = 0.0
  config.model.init_scale = 1.0
  config.model.dtype = 'float32'
  config.model.scan = True
  config.model.remat = 'none'

  config.moe = ml_collections.ConfigDict()
  config.moe.layers = 'every_2'
  config.moe.num_experts = 8
  config.moe.d_ff = 512
  config.moe.experts = "mlp(activation='gelu')"
  config.moe.router = 'switch()'
  config.moe.balance = ('switch_loss(weight=0.01)', 'z_loss(weight=0.001)')
  config.moe.dispatch = 'scatter()'
  config.moe.group_size = 512
  config.moe.capacity_factor = 1.25
  config.moe.eval_capacity_factor = 2.0
  config.moe.extra_ffn = 'none'
  config.moe.dense_branch = 'none'
  config.moe.dense_branch_d_ff = 512

  config.data = ml_collections.ConfigDict()
  config.data.name = 'python_stdlib'
  config.data.dir = ''
  config.data.cache = ''
  config.data.domains = ()
  config.data.weights = ()
  config.data.seq_len = 256
  config.data.tokenizer = 'bytes()'
  config.data.objective = 'causal_lm()'
  config.data.text_field = 'text'
  config.data.train_split = 'train'
  config.data.validation_split = 'validation'

  config.train = ml_collections.ConfigDict()
  config.train.steps = 400
  config.train.batch_size = 16
  config.train.accumulate = 1
  config.train.clip = 1.0
  config.train.z_loss = 1e-4
  config.train.balance_over_layers = 'sum'
  config.train.optimizer = 'adamw(b1=0.9, b2=0.95, weight_decay=0.1)'
  config.train.schedule = 'cosine(peak=4e-3, warmup=40, final=4e-4)'
  config.train.log_every = 10
  config.train.eval_every = 0
  config.train.checkpoint_every = 200
  config.train.keep = 2

  config.eval = ml_collections.ConfigDict()
  config.eval.batch_size = 16
  config.eval.max_bytes = 65536
  return config.lock()
