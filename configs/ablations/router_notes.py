"""Why claims of routers.py came out as they did, where that is known."""

_EARLY_DAYS = (
  'After 120 steps of 2,048 bytes the router is young and each of many experts '
  'has seen a part of a quarter of a million bytes.'
)
QUICK = {
  'switch_over_dense': _EARLY_DAYS,
  'fine_and_shared_over_top2': _EARLY_DAYS,
  'hash_under_switch': (
    'Tokens are bytes: an expert of its own for each byte is a table of what '
    'follows it, and needs no router that has to be learnt first.'
  ),
  'bip_late': (
    'The loss that it is compared with has a weight of 0.1, as in the paper, '
    'and is as even as that in a model of one sparse layer.'
  ),
  'top_p_uses_fewer': (
    'Top-p starts at 0.4 of all experts and uses fewer as the router gets '
    'surer, which takes longer than this.'
  ),
  'moe_plus_plus_loss': (
    'A fifth of its assignments drop: its capacities bind in groups of one '
    'sequence, and top-2 here is dropless.'
  ),
}

REFERENCE = {
  'hash_under_switch': (
    'Tokens are bytes: an expert for a byte needs no router that has to be '
    'learnt first. sparse_dense.py follows its lead over more tokens.'
  ),
  'bip_late': (
    'The loss that it is compared with has a weight of 0.1, as in the paper. '
    'At a tenth of that (`bip_late_0.01`) neither is seen to be better '
    'balanced.'
  ),
  'granularity': (
    'OLMoE has a z-loss of 0.001 and top-2 here has none. A tenth of it '
    '(`less_z`) is 0.019 better, and what is left, 0.007, may be nothing '
    '(`granularity_less_z`).'
  ),
  'shared_expert': (
    'As `granularity`: of the two OLMoE alone has a z-loss. With a tenth of it '
    'the shared expert changes nothing (`shared_expert_less_z`).'
  ),
  'null_loss': (
    'Its experts are less even than those of top-2 (MaxVio 1.9, not 0.4); that '
    'this is why has not been tried.'
  ),
  'moe_plus_plus_loss': (
    'It drops 4 % of its assignments, and is behind without drops, too '
    '(`moe_plus_plus_dropless_loss`); it has a fifth fewer parameters.'
  ),
  'moe_plus_plus_dropless_loss': (
    'It has a fifth fewer parameters than top-2; that this is why has not been '
    'tried.'
  ),
  'autonomy_loss': (
    'A router over the same experts of low rank is 0.019 better than their '
    'bids (`bids_over_router`); the other 0.027 is what these experts lose.'
  ),
  'less_z': (
    'Declared when three seeds without any z-loss had been seen (0.020 better '
    'than with it); these runs are new.'
  ),
}
