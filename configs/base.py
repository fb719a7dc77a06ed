"""The schema: every field of a config, with its default.

A config file starts from `get_config` and sets what is its own; the defaults
are a small dense decoder on bytes. README.md says of each field what it means.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """A dense decoder; unlocked. The fields of `moe` wait for `moe.layers`."""
  config = ml_collections.ConfigDict()
  config.seed = 0
  # Simulated devices, where the platform is CPU; elsewhere without effect.
  config.cpu_devices = 1
  # Wishes, as 'auto(expert=4)': each is cut down to what divides the devices
  # found; 'exact(data=2, expert=4)' is an order.
  config.mesh = 'auto()'

  config.model = model = ml_collections.ConfigDict()
  model.kind = 'decoder'  # or 'encoder_decoder'
  model.num_layers = 4
  model.d_model = 128
  model.num_heads = 2
  model.d_head = 64
  model.d_ff = 512
  model.ffn = "mlp(activation='relu')"
  # Of the layers in turn, as ('window(size=128)', "full(positions='none')");
  # also 'full(kv_heads=2)', 'chunk(size=64)', 'mla(kv_rank=64, ...)'.
  model.attention = ('full()',)
  model.positions = 'rope'  # 'rope(base=500000.0)', 'relative', 'none'
  model.qk_norm = True
  model.norm_scale = True  # False fixes the gains of all norms at 1
  model.norm_eps = 1e-6
  model.norm_at = 'input'  # of sub-layers; or 'output'
  model.residual_scale = 1.0  # on what a sub-layer adds
  model.embedding_scale = 1.0
  model.logit_scale = 0.0  # 0 is 1, or d_model^-1/2 of a tied head
  model.vocab_size = 0  # rows of the embedding table; 0 is the tokenizer's
  model.tied_head = True
  model.dropout = 0.0
  model.init_scale = 1.0
  model.dtype = 'float32'  # or 'bfloat16': activations; parameters stay float32
  model.scan = True
  model.remat = 'none'  # 'full', 'dots', 'dispatch'

  config.moe = moe = ml_collections.ConfigDict()
  # Which are sparse: 'every_2', 'every_4_at_1', 'from_3', 'all', 'none', '1,3'.
  moe.layers = 'none'
  moe.num_experts = 8
  moe.d_ff = 512
  moe.share_experts = 1  # adjacent MoE layers with one set of experts
  # A dropout of its own takes the place of model.dropout in experts alone, as
  # in fine-tuning: "mlp(activation='relu', dropout=0.4)" (Switch, table 4).
  moe.experts = "mlp(activation='relu')"
  moe.router = 'switch()'
  moe.balance = ('switch_loss(weight=0.01)', 'z_loss(weight=0.001)')
  moe.dispatch = 'scatter()'
  moe.group_size = 256
  # What the factors mean: here rows of an expert in units of T x K / E; also
  # 'paper()', 'mesh_tensorflow()', 't5x()', 'vmoe()', 'fixed(rows=64)'. A
  # factor of 0 is dropless.
  moe.capacity_rule = 'per_choice()'
  moe.capacity_factor = 1.25
  moe.eval_capacity_factor = 2.0
  # Who gets them: 'token_major()', 'batch_prioritized()', 'highest_weight()'.
  moe.seating = 'rank_major()'
  moe.allow_noncausal = False  # a decoder may read the future from its drops
  moe.route_padding = False  # as T5X and Hugging Face do
  moe.identical_experts = False  # at the start, as V-MoE's
  # A dense FFN in every sparse layer: 'before', 'after', 'parallel'.
  moe.extra_ffn = 'none'
  # An FFN inside the layer that every token takes: 'shared', 'gated'.
  moe.dense_branch = 'none'
  moe.dense_branch_d_ff = 512
  # Zero-computation experts beside them: 'zero(count=2)', 'copy()', ...
  moe.local_experts = ()
  # Fields of moe that differ in the decoder of an encoder-decoder.
  moe.decoder = ml_collections.ConfigDict()

  config.data = data = ml_collections.ConfigDict()
  # The standard library, or 'python_packages', the packages that moe_jax needs;
  # with data.dir set, that folder's .txt files, one a domain; or a TFDS name
  # such as 'c4/en:3.1.0', prepared in data.dir.
  data.name = 'python_stdlib'
  data.dir = ''
  data.cache = ''  # for built data; '' is WORKDIR/data
  data.domains = ()
  # Shares of the training rows by domain; () is in proportion to tokens.
  data.weights = ()
  data.max_bytes = 0  # of the training text; 0 is all
  data.max_bad = 0  # records that cannot be read and may be left out
  data.seq_len = 256
  data.tokenizer = 'bytes()'  # or 'bpe(size=2048)', of the training text
  data.objective = 'causal_lm()'
  data.problem = ''  # another kind: 'my_lab.series.Series(noise=0.1)'
  data.text_field = 'text'
  data.train_split = 'train'
  data.validation_split = 'validation'
  # Fine-tuning, where one of these is set; accuracy by label. Built in is
  # 'docstring(examples=1000)'; else a TFDS name such as 'super_glue/cb', in
  # data.dir, or the path of NAME_train.jsonl, NAME_validation.jsonl beside it.
  data.task = ''
  data.task_file = ''

  config.train = train = ml_collections.ConfigDict()
  train.steps = 500
  train.batch_size = 8
  train.accumulate = 1
  train.clip = 1.0
  train.z_loss = 1e-4
  train.balance_over_layers = 'sum'  # or 'mean'
  train.optimizer = 'adamw(b1=0.9, b2=0.98, eps=1e-8, weight_decay=0.1)'
  train.schedule = 'cosine(peak=4e-3, warmup=50, final=2e-4)'
  train.log_every = 10
  # Steps between evaluations, and checkpoints; 0 is at the end alone.
  train.eval_every = 0
  train.checkpoint_every = 250
  # Steps between checks that copies on several devices are equal; 0 is never.
  train.check_replicas_every = 0
  train.keep = 2
  # Shares of the steps after which a checkpoint is written and never deleted.
  train.keep_at = ()
  # The score whose best checkpoint is kept, too: 'eval/loss', ''.
  train.keep_best = ''
  # Where loss or gradient are not finite: 'stop', or 'skip' the step, at most
  # so many in a row.
  train.on_nonfinite = 'stop'
  train.max_skips = 10
  # Where the loss is far above what it was: 'ignore()', or 'rollback()' to a
  # checkpoint and past these batches.
  train.on_spike = 'ignore()'
  # Of a start; then a checkpoint is written, and the next start goes on.
  train.max_minutes = 0.0
  # Without a step's end, or what follows it; then the process ends. 0 is never.
  train.max_step_minutes = 0.0
  # Workdir of a run whose last parameters are the start; of them all, or what
  # is no part of an MoE layer (a dense student's from a sparse teacher).
  train.init_from = ''
  train.init_dense = False
  # What is trained: 'all', 'non_moe', 'moe', 'router', 'attention', 'ffn'
  # (dense FFNs), 'experts(of=(1,))'.
  train.trainable = 'all'
  # Workdir of a run whose probabilities are learnt, with the weight `distill`.
  train.teacher = ''
  train.distill = 0.25

  config.eval = ml_collections.ConfigDict()
  config.eval.batch_size = 32
  # Of each domain's validation documents: 'all', or those at 'even' or at 'odd'
  # places, so that what is tuned on one half is judged on the other.
  config.eval.documents = 'all'
  config.eval.max_bytes = 0  # of each domain's validation text; 0 is all
  config.eval.max_examples = 0  # of a task's validation; 0 is all
  # What else is measured of the last state: 'capacity_factors(values=(1.0,))',
  # 'drop_by_position()', 'logits()', 'experts_by_domain()', 'switching()'.
  config.eval.probes = ()
  return config
