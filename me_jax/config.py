"""What a run does, as plain dataclasses.

`experiments/*.py` fill them in, `--config.NAME=VALUE` overrides them, and a
workdir keeps them: every setting that can move a number is here.
"""

import dataclasses
from typing import Any


@dataclasses.dataclass(kw_only=True)
class ModelSource:
  """Which model.

  Attributes:
    name: A preset, a hub id, or a directory or GGUF file.
    path: Where the weights of the preset are, if not at their usual place.
  """

  name: str
  path: str = ''


@dataclasses.dataclass(kw_only=True)
class RomeConfig:
  """ROME's hyper-parameters, in the names of its authors' files.

  Attributes:
    name: Always 'rome'.
    layer: Layer whose `down_proj` is edited, zero-based.
    variant: 'rome', 'r_rome' or 'p_rome': which key the rank-one change is
      built from.
    mom2_adjustment: Take the key direction through the inverse second moment.
    v_num_grad_steps: Evaluations of the loss; there is one update less.
    v_lr: Adam's step size.
    v_weight_decay: Factor of `‖delta‖ / ‖target_init‖^2`.
    clamp_norm_factor: `‖delta‖` stays below so many times `‖target_init‖`.
    kl_factor: Factor of the divergence on "{subject} is a".
    early_stop_loss: The search ends below this total loss.
    context_template_length_params: Pairs (tokens, how many).
    context_templates: Explicit templates instead of drawn ones.
  """

  name: str = 'rome'
  layer: int = 5
  variant: str = 'rome'
  mom2_adjustment: bool = True
  v_num_grad_steps: int = 25
  v_lr: float = 0.5
  v_weight_decay: float = 1e-3
  clamp_norm_factor: float = 4.0
  kl_factor: float = 0.0625
  early_stop_loss: float = 0.05
  context_template_length_params: tuple[tuple[int, int], ...] = (
    (5, 10),
    (10, 10),
  )
  context_templates: tuple[str, ...] = ()

  def __post_init__(self):
    _one_of('method.variant', self.variant, ('rome', 'r_rome', 'p_rome'))
    _at_least('method.v_num_grad_steps', self.v_num_grad_steps, 1)


@dataclasses.dataclass(kw_only=True)
class _TargetsConfig:
  """The search for targets z of a batch of facts, in its authors' names.

  Attributes:
    v_num_grad_steps: Evaluations of the loss; there is one update less.
    v_lr: Adam's step size.
    v_weight_decay: Factor of `‖delta‖ / ‖target_init‖^2`.
    clamp_norm_factor: `‖delta‖` stays below so many times `‖target_init‖`.
    kl_factor: Factor of the divergence on "{subject} is a".
    early_stop_loss: The search of a fact ends below this total loss.
    search_batch_size: So many facts at most are searched at once. Memory grows
      with it; numbers move by rounding only.
    context_template_length_params: Pairs (tokens, how many).
    context_templates: Explicit templates instead of drawn ones.
  """

  v_num_grad_steps: int = 25
  v_lr: float = 0.5
  v_weight_decay: float = 1e-3
  clamp_norm_factor: float = 4.0
  kl_factor: float = 0.0625
  early_stop_loss: float = 0.05
  search_batch_size: int = 16
  context_template_length_params: tuple[tuple[int, int], ...] = ((10, 5),)
  context_templates: tuple[str, ...] = ()

  def __post_init__(self):
    _at_least('method.v_num_grad_steps', self.v_num_grad_steps, 1)
    _at_least('method.search_batch_size', self.search_batch_size, 1)


@dataclasses.dataclass(kw_only=True)
class MemitConfig(_TargetsConfig):
  """MEMIT's hyper-parameters; `memit_preset` gives published values.

  Attributes:
    name: Always 'memit'.
    layers: Layers whose `down_proj` is edited, from the lowest up; targets are
      searched after the last one.
    mom2_update_weight: λ, how much old keys weigh against new ones. Means a
      second moment that is a mean, not a sum, and belongs to the width of the
      model: `memit_update_weight`.
    cache_previous_keys: Keys of earlier batches are kept in place, too.
  """

  name: str = 'memit'
  layers: tuple[int, ...] = (4, 5, 6, 7, 8)
  mom2_update_weight: float = 15_000.0
  cache_previous_keys: bool = False

  def __post_init__(self):
    super().__post_init__()
    layers = tuple(self.layers)
    if not layers or list(layers) != sorted(set(layers)):
      raise ValueError(
        'method.layers must be one layer or more, each once, from the lowest '
        f'up, got {layers}.'
      )
    if not self.mom2_update_weight > 0:
      raise ValueError(
        'method.mom2_update_weight must be above 0, got '
        f'{self.mom2_update_weight}.'
      )


@dataclasses.dataclass(kw_only=True)
class EmmetConfig(_TargetsConfig):
  """EMMET's hyper-parameters.

  Attributes:
    name: Always 'emmet'.
    layer: Layer whose `down_proj` is edited, zero-based.
    emmet_lambda: How far new keys may miss their values; at 0 none does, and
      no two keys of a batch may be alike. Means a second moment that is a mean:
      a file with `mom2_update_weight` 100000 and 0.1 is 10000 here.
  """

  name: str = 'emmet'
  layer: int = 5
  emmet_lambda: float = 0.1

  def __post_init__(self):
    super().__post_init__()
    _at_least('method.emmet_lambda', self.emmet_lambda, 0)


@dataclasses.dataclass(kw_only=True)
class MendConfig:
  """MEND's hyper-parameters; `mend_preset` fits them to a model.

  What an edit does follows from the first seven; the others are those of
  `launch.train_mend`, which made the networks.

  Attributes:
    name: Always 'mend'.
    layers: Layers whose gate, up and down projections are edited.
    rank: Of the layers of the gradient transform; at most its width.
    n_hidden: Layers before the last one.
    edit_lr: Step size of an edit before training, for every matrix.
    step_sign: 'minus' starts as a step down the edit's loss, 'plus' as a step
      up, as the authors' code does.
    network: File of the trained networks.
    max_length: Tokens; training leaves out examples with a longer text.
    lr: Adam's step size for the networks,
    alpha_lr: and for the step sizes of edits.
    c_edit: Weight of the negative log-likelihood of the target,
    c_loc: and of the divergence on unrelated text.
    outer: What the target is asked with: the 'rephrase', or the 'same' prompt.
    batch: Facts that one example writes at once.
    accumulate: Examples per step of Adam.
    clip: Largest norm of a gradient.
    max_iters: Examples at most,
    val_interval: from one validation to the next,
    patience: and without a better one, after which training ends.
    seed: Of the networks and the order of examples.
  """

  name: str = 'mend'
  layers: tuple[int, ...] = (29, 30, 31)
  rank: int = 1920
  n_hidden: int = 1
  edit_lr: float = 1e-4
  step_sign: str = 'minus'
  network: str = ''
  max_length: int = 40
  lr: float = 1e-6
  alpha_lr: float = 1e-4
  c_edit: float = 0.1
  c_loc: float = 1.0
  outer: str = 'rephrase'
  batch: int = 1
  accumulate: int = 10
  clip: float = 100.0
  max_iters: int = 100_000
  val_interval: int = 1_000
  patience: int = 20_000
  seed: int = 42

  def __post_init__(self):
    _one_of('method.step_sign', self.step_sign, ('minus', 'plus'))
    _one_of('method.outer', self.outer, ('rephrase', 'same'))
    for name in ('rank', 'batch', 'accumulate', 'max_iters', 'val_interval'):
      _at_least(f'method.{name}', getattr(self, name), 1)
    _at_least('method.n_hidden', self.n_hidden, 0)
    layers = tuple(self.layers)
    if not layers or list(layers) != sorted(set(layers)):
      raise ValueError(
        'method.layers must be one layer or more, each once, from the lowest '
        f'up, got {layers}.'
      )
    for name in ('val_interval', 'max_iters'):
      if getattr(self, name) % self.accumulate:
        raise ValueError(
          f'method.{name} must be a multiple of method.accumulate = '
          f'{self.accumulate}, got {getattr(self, name)}.'
        )


@dataclasses.dataclass(kw_only=True)
class MendTrainingConfig:
  """One training of MEND's networks, which a model's weights outlive.

  Attributes:
    model: Whose edits the networks are to make.
    method: Hyper-parameters.
    facts: Pools to learn from, by name, as in `FactsConfig`.
    facts_per_pool: Facts drawn from each; 0 for all.
    val_facts: Facts of these set aside for validation; no subject of theirs is
      learned from.
  """

  model: ModelSource
  method: MendConfig
  facts: tuple[str, ...] = ('zsre_train', 'counterfact_train')
  facts_per_pool: int = 0
  val_facts: int = 200

  def __post_init__(self):
    _at_least('facts_per_pool', self.facts_per_pool, 0)
    _at_least('val_facts', self.val_facts, 1)


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
      _one_of(f'method.{name}', getattr(self, name), allowed)
    _at_least('method.n_iter', self.n_iter, 1)
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


@dataclasses.dataclass(kw_only=True)
class SecondMomentConfig:
  """Which text the second moment of the keys is collected from.

  Attributes:
    corpus: 'wikipedia' (hub), 'wikipedia_passages' (data root), 'generated'
      (by the model itself, needs no data) or 'file:PATH'.
    n_samples: Texts drawn without replacement, or
    min_tokens: texts are drawn until they hold so many tokens. One of the two
      is 0.
    max_length: Tokens of a text, the rest is cut.
    seed: Of the draw.
  """

  corpus: str = 'wikipedia'
  n_samples: int = 100_000
  min_tokens: int = 0
  max_length: int = 4096
  seed: int = 1


@dataclasses.dataclass(kw_only=True)
class FactsConfig:
  """Which facts are edited in.

  Attributes:
    name: 'sample' (packaged), 'zsre', 'counterfact', ...
    target: 'alt' writes the counterfactual answer, 'true' the true one.
    subjects: 'distinct' keeps the first fact of each subject, 'any' all.
    seed: Of the draw. A draw of 10 is the head of the draw of 100.
  """

  name: str
  target: str = 'alt'
  subjects: str = 'distinct'
  seed: int = 0


@dataclasses.dataclass(kw_only=True)
class EvalConfig:
  """How benchmarks are put to a model, and which shortcuts are taken.

  No shortcut changes a score; each can be turned off to see that.

  Attributes:
    profile: 'oc-2023-12' or 'oc-2024-01': whose prompts and scoring rules.
    prompts: 'base', 'chat' (LLaMA-2's markup), or 'auto': what the preset of
      the model says.
    exemplars: Of CommonsenseQA: 'fixed' takes the first eight training
      questions, 'file:PATH' those whose ids are listed there.
    early_stop: An answer ends when no continuation can change its score.
    one_forward: MMLU's four texts are ranked by the letter alone, where they
      differ in nothing else.
    shared_prefix: What prompts have in common is computed once.
    refill: A row whose answer ended takes the next prompt at once.
    lower_layers_gb: Host memory for what enters the first edited layer where
      likelihoods are asked, which no edit changes; 0 computes it each time.
    copy_untouched: Where a method that acts in the forward pass finds nothing
      to do in an item, the unedited model's answer is copied.
  """

  profile: str = 'oc-2023-12'
  prompts: str = 'auto'
  exemplars: str = 'fixed'
  early_stop: bool = True
  one_forward: bool = True
  shared_prefix: bool = True
  refill: bool = True
  lower_layers_gb: float = 1.0
  copy_untouched: bool = True

  def __post_init__(self):
    _one_of('evals.profile', self.profile, ('oc-2023-12', 'oc-2024-01'))
    _one_of('evals.prompts', self.prompts, ('auto', 'base', 'chat'))
    if self.exemplars != 'fixed' and not self.exemplars.startswith('file:'):
      raise ValueError(
        f"evals.exemplars must be 'fixed' or 'file:PATH', got "
        f'{self.exemplars!r}.'
      )
    _at_least('evals.lower_layers_gb', self.lower_layers_gb, 0)


@dataclasses.dataclass(kw_only=True)
class RunConfig:
  """One sequential run: edits one after another, measured on the way.

  Attributes:
    model: The model at step 0.
    method: Hyper-parameters of the editing method.
    facts: The facts to write.
    second_moment: Statistics that the method needs.
    num_edits: Facts written in all.
    edit_batch_size: Facts written in one edit step.
    eval_steps: Numbers of edits after which everything is measured.
    tasks: Measures of general ability taken at those steps.
    evals: How they are taken.
    limit: Items per task, a seeded nested subset; 0 for all.
    seed: Of templates, subsets and bootstrap intervals.
    stop_on_collapse: End the run when the edited model is beyond use:
      non-finite or worse than guessing on its own vocabulary.
  """

  model: ModelSource
  method: Any
  facts: FactsConfig
  second_moment: SecondMomentConfig
  num_edits: int = 100
  edit_batch_size: int = 1
  eval_steps: tuple[int, ...] = (0, 1, 10, 20, 100)
  tasks: tuple[str, ...] = ()
  evals: EvalConfig = dataclasses.field(default_factory=EvalConfig)
  limit: int = 0
  seed: int = 0
  stop_on_collapse: bool = False

  def __post_init__(self):
    _at_least('num_edits', self.num_edits, 1)
    _at_least('edit_batch_size', self.edit_batch_size, 1)
    _at_least('limit', self.limit, 0)
    for edits in self.eval_steps:
      if not isinstance(edits, int):
        raise ValueError(
          f'eval_steps are numbers of edits, as 0,1,10, got {edits!r}.'
        )


def checked(config: Any) -> Any:
  """An equal config whose values were checked as those of a new one are.

  Overrides set fields one by one, after the checks of the constructor.

  Raises:
    ValueError: A value is out of range.
  """
  return dataclasses.replace(
    config,
    **{
      field.name: checked(value)
      for field in dataclasses.fields(config)
      if dataclasses.is_dataclass(value := getattr(config, field.name))
    },
  )


def memit_update_weight(mlp_dim: int) -> float:
  """λ for a model with keys of width F, like 15000 for LLaMA-2-7B.

  A key k of ordinary text has q = kᵀ C⁻¹ k near F, and an edit delivers
  q / (λ + q) of what it is asked for: 15000 F / 11008 keeps that fraction.
  """
  return 15_000 * mlp_dim / 11_008


def memit_preset(preset: str, **changes: Any) -> MemitConfig:
  """MEMIT with published values.

  Args:
    preset: 'easyedit', whose files for LLaMA-2 hardly bound the search, or
      'authors', whose file for GPT-J keeps targets near where they start.
    **changes: Of other fields.

  Raises:
    ValueError: There is no such preset, or a value is out of range.
  """
  values = {
    'easyedit': {'clamp_norm_factor': 4.0, 'v_weight_decay': 1e-3},
    'authors': {'clamp_norm_factor': 0.75, 'v_weight_decay': 0.5},
  }
  _one_of('preset', preset, tuple(values))
  return MemitConfig(**{**values[preset], **changes})


def mend_preset(model: str, **changes: Any) -> MendConfig:
  """MEND for a model by name.

  The last three of its layers, as for LLaMA-2-7B. There the networks have rank
  1920 for a width of 15104, an eighth; small models have a sixteenth or less:
  rank 128 for 2112 already costs as much as the layers that are trained
  through.

  Args:
    model: The model; all but the small ones get the published values, which
      means layers 29 to 31 for the 40 of LLaMA-2-13B, too.
    **changes: Of other fields.
  """
  values = {
    'smollm2_135m': {'layers': (27, 28, 29), 'rank': 128},
    'tiny': {'layers': (1, 2, 3), 'rank': 6},
  }
  return MendConfig(**{**values.get(model, {}), **changes})


def parse_arg(arg: str | None, **defaults: str) -> dict[str, str]:
  """The settings in `arg`, 'name=value,name=value', over `defaults`.

  Raises:
    ValueError: A name is not one of `defaults`.
  """
  found = dict(defaults)
  for piece in filter(None, (arg or '').split(',')):
    name, equals, value = piece.partition('=')
    if not equals or name not in defaults:
      raise ValueError(
        f'Expected settings {", ".join(f"{n}=..." for n in defaults)} after '
        f'the colon of --config, got {piece!r}.'
      )
    found[name] = value
  return found


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
  if value not in allowed:
    raise ValueError(
      f'{name} must be one of {", ".join(allowed)}, got {value!r}.'
    )


def _at_least(name: str, value: int | float, smallest: int) -> None:
  if value < smallest:
    raise ValueError(f'{name} must be at least {smallest}, got {value}.')
