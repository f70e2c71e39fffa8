"""What a run does, whichever method edits."""

import dataclasses
from typing import Any

from me_jax.config.checks import at_least, one_of


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
    one_of('evals.profile', self.profile, ('oc-2023-12', 'oc-2024-01'))
    one_of('evals.prompts', self.prompts, ('auto', 'base', 'chat'))
    if self.exemplars != 'fixed' and not self.exemplars.startswith('file:'):
      raise ValueError(
        f"evals.exemplars must be 'fixed' or 'file:PATH', got "
        f'{self.exemplars!r}.'
      )
    at_least('evals.lower_layers_gb', self.lower_layers_gb, 0)


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
    at_least('num_edits', self.num_edits, 1)
    at_least('edit_batch_size', self.edit_batch_size, 1)
    at_least('limit', self.limit, 0)
    for edits in self.eval_steps:
      if not isinstance(edits, int):
        raise ValueError(
          f'eval_steps are numbers of edits, as 0,1,10, got {edits!r}.'
        )
