"""What a run does, whichever method edits."""

import dataclasses
from typing import Any

from me_jax.config.adjusted_perplexity import AdjustedPerplexityConfig
from me_jax.config.checks import at_least, one_of
from me_jax.config.grace import GraceConfig
from me_jax.config.model import ModelSource
from me_jax.config.saliency import SaliencyConfig
from me_jax.typing import DTYPES


@dataclasses.dataclass(kw_only=True)
class FactsConfig:
  """Which facts are edited in.

  Attributes:
    name: 'sample' (packaged), 'zsre', 'counterfact', ...
    target: 'alt' writes the counterfactual answer, 'true' the true one.
    subjects: 'distinct' keeps the first fact of each subject, 'any' that of
      each question.
    seed: Of the draw. A draw of 10 is the head of the draw of 100.
  """

  name: str
  target: str = 'alt'
  subjects: str = 'distinct'
  seed: int = 0


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
    store_prompts: Keep the text that was asked with each answer.
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
  store_prompts: bool = False

  def __post_init__(self):
    one_of('evals.profile', self.profile, ('oc-2023-12', 'oc-2024-01'))
    one_of('evals.prompts', self.prompts, ('auto', 'base', 'chat'))
    if self.exemplars != 'fixed' and not self.exemplars.startswith('file:'):
      raise ValueError(
        f"evals.exemplars must be 'fixed' or 'file:PATH', got "
        f'{self.exemplars!r}.'
      )
    at_least('evals.lower_layers_gb', self.lower_layers_gb, 0)


ANALYSES = ('weight_drift', 'saliency', 'adjusted_ppl')


@dataclasses.dataclass(kw_only=True)
class RunConfig:
  """One sequential run: edits one after another, measured on the way.

  Attributes:
    model: The model at step 0.
    dtype: Of its weights and activations, 'float32' or 'bfloat16'; weights that
      the method edits are float32 either way.
    method: Hyper-parameters of the editing method.
    facts: The facts to write.
    second_moment: Statistics that the method needs.
    num_edits: Facts written in all.
    edit_batch_size: Facts written in one edit step.
    eval_steps: Numbers of edits after which everything is measured.
    tasks: Measures of general ability taken at those steps.
    evals: How they are taken.
    analyses: What else is looked at after those steps: 'weight_drift',
      'saliency', 'adjusted_ppl' (of the answers to `commonsenseqa_whole`, which
      must be among the tasks).
    saliency: How the second is taken.
    adjusted_ppl: How the third is taken.
    limit: Items per task, a seeded nested subset; 0 for all.
    seed: Of context templates and subsets.
    stop_on_collapse: End the run when the edited model is beyond use:
      non-finite or worse than guessing on its own vocabulary.
  """

  model: ModelSource
  method: Any
  facts: FactsConfig
  second_moment: SecondMomentConfig
  dtype: str = 'float32'
  num_edits: int = 100
  edit_batch_size: int = 1
  eval_steps: tuple[int, ...] = (0, 1, 10, 20, 100)
  tasks: tuple[str, ...] = ()
  evals: EvalConfig = dataclasses.field(default_factory=EvalConfig)
  analyses: tuple[str, ...] = ()
  saliency: SaliencyConfig = dataclasses.field(default_factory=SaliencyConfig)
  adjusted_ppl: AdjustedPerplexityConfig = dataclasses.field(
    default_factory=AdjustedPerplexityConfig
  )
  limit: int = 0
  seed: int = 0
  stop_on_collapse: bool = False

  def __post_init__(self):
    one_of('dtype', self.dtype, DTYPES)
    if self.dtype != 'float32' and isinstance(self.method, GraceConfig):
      raise ValueError(
        f'dtype must be float32 for GRACE, got {self.dtype!r}: its radii tell '
        'keys apart by less than bfloat16 rounds them.'
      )
    at_least('num_edits', self.num_edits, 1)
    at_least('edit_batch_size', self.edit_batch_size, 1)
    at_least('limit', self.limit, 0)
    for name in self.analyses:
      one_of('analyses', name, ANALYSES)
    if (
      'adjusted_ppl' in self.analyses
      and 'commonsenseqa_whole' not in self.tasks
    ):
      raise ValueError(
        'The analysis adjusted_ppl reads answers to commonsenseqa_whole: add '
        'that to tasks.'
      )
    for edits in self.eval_steps:
      if not isinstance(edits, int):
        raise ValueError(
          f'eval_steps are numbers of edits, as 0,1,10, got {edits!r}.'
        )
