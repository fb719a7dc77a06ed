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

REFERENCE = {}
