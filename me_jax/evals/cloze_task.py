"""A multiple-choice task told by how likely the text of each choice is.

Letters are beyond small models; the likelihood of an answer's words still
tells what they know.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from me_jax.evals import aggregates, letters, prompts
from me_jax.evals.task import Item, Metric, Record, TaskContext
from me_jax.typing import ScoreRequest, ScoreResult

Label = str
READINGS = ('per_char', 'per_token', 'sum')

_END = -1  # no token has this id


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClozeTask:
  """See `Task`. What is scored is `{text} {choice}`, its choice only.

  Attributes:
    name: As in the registry.
    version: Of the prompt and the items.
    context: Tokenizer, sources, settings. Chat models, too, read the bare text.
    docs: Reads the items.
    doc_to_text: The question.
    doc_to_choice: The text of each choice, in the order of `labels`.
    doc_to_target: The label of the right choice.
    labels: What the choices are called.
    readings: What the log-likelihood of a choice is divided by: its
      characters ('per_char'), its tokens ('per_token') or nothing ('sum').
      The first is the headline.
    macro_over: Groups whose mean is the headline, the mean over items beside
      it; empty for a mean over items alone.
  """

  name: str
  version: str
  context: TaskContext
  docs: Callable[[], Sequence[Item]]
  doc_to_text: Callable[[Item], str]
  doc_to_choice: Callable[[Item], Sequence[str]]
  doc_to_target: Callable[[Item], Label]
  labels: Sequence[Label]
  readings: tuple[str, ...] = READINGS
  macro_over: tuple[str, ...] = ()
  mode: str = dataclasses.field(default='ppl', init=False)

  def items(self) -> Sequence[Item]:
    """See `Task`."""
    return self.docs()

  def request(self, item: Item) -> ScoreRequest:
    """The question as the context, and each choice as a continuation.

    Question and choice are tokenised together. Words that all choices begin
    with belong to the choices: a mean over a choice is one over all of it.
    A question that exceeds the window is cut on the left.

    Raises:
      ValueError: A choice has no text, or leaves no room for the question.
    """
    encode, window = self.context.tokenizer.encode, self.context.window
    question, choices = self.doc_to_text(item), self.doc_to_choice(item)
    if not all(choices):
      raise ValueError(
        f'{self.name}: item {item.id!r} has a choice without text: '
        f'{list(choices)}. Restore the data file.'
      )
    context, (_, *continuations) = prompts.split_common_prefix(
      [
        [*encode(question), _END],
        *(encode(f'{question} {choice}') for choice in choices),
      ]
    )
    room = window - max(map(len, continuations))
    if room < 1:
      raise ValueError(
        f'{self.name}: a choice of item {item.id!r} fills the window of '
        f'{window} tokens. Take a larger one.'
      )
    return ScoreRequest(
      context=prompts.cut_left(context, room, self.context.tokenizer),
      continuations=tuple(continuations),
    )

  def answer(self, item: Item, result: ScoreResult) -> Record:
    """`resps` holds the log-likelihood of each choice in nats, `n_tokens` the
    tokens that it is a sum over."""
    del item
    sums = [np.sum(lp, dtype=np.float64) for lp in result.logprobs]
    return {
      'resps': [letters.to_json(s) for s in sums],
      'n_tokens': [len(lp) for lp in result.logprobs],
      'nonfinite': not np.isfinite(sums).all(),
    }

  def score(self, item: Item, answer: Record) -> Record:
    """The likeliest choice by each reading; the first of equals."""
    sums = [float(s) for s in answer['resps']]
    sizes = {
      'per_char': [len(choice) for choice in self.doc_to_choice(item)],
      'per_token': answer['n_tokens'],
      'sum': [1] * len(sums),
    }
    target = self.doc_to_target(item)
    filtered, metrics = {}, {}
    for reading in self.readings:
      best = letters.first_smallest(
        [-s / n for s, n in zip(sums, sizes[reading], strict=True)]
      )
      filtered[reading] = self.labels[best]
      metrics[f'accuracy_{reading}'] = float(filtered[reading] == target)
    return {'target': target, 'filtered_resps': filtered, 'metrics': metrics}

  def is_cut_short(self, item: Item, answer: Record) -> bool:
    """Never: a likelihood is whole."""
    del item, answer
    return False

  def aggregate(
    self, samples: Sequence[Record], *, complete: bool
  ) -> list[Metric]:
    """The accuracy by each reading; with groups the mean of their means, then
    the mean over items, called `..._weighted`.

    Raises:
      ValueError: `complete`, and a group has no sample.
    """
    return [
      *self._accuracies(samples, complete),
      *aggregates.spread(samples, self.labels, self.readings[0]),
      aggregates.nonfinite(samples),
    ]

  def _accuracies(
    self, samples: Sequence[Record], complete: bool
  ) -> list[Metric]:
    if not self.macro_over:
      return aggregates.means(samples)
    required = self.macro_over if complete else ()
    aggregates.check_groups(self.name, samples, required)
    names = [f'accuracy_{reading}' for reading in self.readings]
    return [
      *(
        aggregates.macro_mean(name, samples, name, self.macro_over)
        for name in names
      ),
      *(aggregates.mean(f'{name}_weighted', samples, name) for name in names),
    ]
