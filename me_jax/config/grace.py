"""Hyper-parameters of GRACE."""

import dataclasses

from me_jax.config.checks import at_least, one_of


@dataclasses.dataclass(kw_only=True)
class GraceConfig:
  """GRACE's hyper-parameters. The policies and rules of look-ups are those of
  `edits/grace_lookup.py`, what becomes of a key is in `edits/codebook.py`.

  Attributes:
    name: Always 'grace'.
    layer: Layer whose `down_proj` has the codebook, zero-based.
    eps: Deferral radius of a new key: Euclidean, so the same number means
      something else at another layer or model.
    edit_lr: Adam's step size.
    n_iter: Adam's steps, all of which are made.
    val_init: 'cold' begins a value at random, 'warm' at the present output.
    seed: Of 'cold'.
    replacement: 'replace_last', 'replace_prompt' or 'replace_all'; the last two
      with 'last_prompt' only.
    query: Policy of learning and of edit scores: 'last_prompt',
      'every_new_token', 'last_input' or 'fixed_last_edit'.
    task_query: Policy of measures of general ability; empty for the same.
    eps_expand: 'coverage' or 'moving_average'.
    label_match: What makes two facts say the same: 'target_ids', or
      'legacy_label_mean', the mean over tokens with -100 for the prompt's.
    reedit: 'overwrite', or 'legacy_split', after which a second fact for the
      same prompt is never found.
    edit_if: 'always', or 'wrong': only if some token of the target is not what
      the model says.
  """

  name: str = 'grace'
  layer: int = 30
  eps: float = 1.0
  edit_lr: float = 1.0
  n_iter: int = 50
  val_init: str = 'cold'
  seed: int = 0
  replacement: str = 'replace_last'
  query: str = 'last_prompt'
  task_query: str = ''
  eps_expand: str = 'coverage'
  label_match: str = 'target_ids'
  reedit: str = 'overwrite'
  edit_if: str = 'always'

  def __post_init__(self):
    policies = (
      'last_prompt',
      'every_new_token',
      'last_input',
      'fixed_last_edit',
    )
    for name, allowed in {
      'val_init': ('cold', 'warm'),
      'replacement': ('replace_last', 'replace_prompt', 'replace_all'),
      'query': policies,
      'task_query': ('', *policies),
      'eps_expand': ('coverage', 'moving_average'),
      'label_match': ('target_ids', 'legacy_label_mean'),
      'reedit': ('overwrite', 'legacy_split'),
      'edit_if': ('always', 'wrong'),
    }.items():
      one_of(f'method.{name}', getattr(self, name), allowed)
    at_least('method.n_iter', self.n_iter, 1)
    if not self.eps > 0:
      raise ValueError(f'method.eps must be above 0, got {self.eps}.')
    used = {self.query, self.task_query or self.query}
    if self.replacement != 'replace_last' and used != {'last_prompt'}:
      raise ValueError(
        f'method.replacement {self.replacement} replaces tokens before the '
        'query, which must be there when they are computed: set method.query '
        f'to last_prompt and method.task_query to nothing, got {self.query!r} '
        f'and {self.task_query!r}.'
      )
