"""A benchmark whose items a model answers in writing.

The parts have the names of lm-evaluation-harness's task files where it has
them; a benchmark's own file fills them in.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from me_jax.evals import aggregates, prompts
from me_jax.evals.prompts import Turn
from me_jax.evals.task import Item, Metric, Record, TaskContext
from me_jax.typing import GenerateRequest, GenerateResult

Text = str
Prediction = str
Decided = Callable[[Text], bool]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
  """One way to read an answer: what is taken from it, and what that is worth.

  Attributes:
    name: 'oc' for OpenCompass's way, 'clean' for ours.
    filter: From the item and the model's text to the prediction; '' if there
      is none.
    mark: From the item and the prediction to metrics by name, 0 to 1.
  """

  name: str
  filter: Callable[[Item, Text], Prediction]
  mark: Callable[[Item, Prediction], Mapping[str, float]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationTask:
  """See `Task`.

  Attributes:
    name: As in the registry.
    version: The OpenCompass configuration it follows, or our own name.
    context: Tokenizer, sources, settings.
    docs: Reads the items.
    doc_to_turns: The query of an item: one round of a dialogue, or a text.
    doc_to_target: The right answer, as far as there is one to show.
    fewshot: The exemplars of an item, each a round of turns; they come first.
      While the prompt exceeds the window the last one is dropped. Exemplars
      that must never be dropped belong into `doc_to_turns`.
    max_gen_toks: Tokens of an answer, at most.
    stop_when: From an item to a predicate: True of a text if no continuation
      can change what *any* of the readings takes from it. None: never.
    readings: The profile's own first; the metrics of the others get their
      name as a suffix.
    macro_over: Groups whose mean is the headline; empty for a mean over items.
    extra_metrics: More numbers, from all samples.
  """

  name: str
  version: str
  context: TaskContext
  docs: Callable[[], Sequence[Item]]
  doc_to_turns: Callable[[Item], Sequence[Turn]]
  doc_to_target: Callable[[Item], str]
  fewshot: Callable[[Item], Sequence[Sequence[Turn]]] = lambda item: ()
  max_gen_toks: int = 100
  stop_when: Callable[[Item], Decided] | None = None
  readings: tuple[Reading, ...]
  macro_over: tuple[str, ...] = ()
  extra_metrics: Callable[[Sequence[Record]], list[Metric]] = lambda samples: []
  mode: str = dataclasses.field(default='gen', init=False)

  def items(self) -> Sequence[Item]:
    """See `Task`."""
    return self.docs()

  def prompt(self, item: Item, exemplars: Sequence[Sequence[Turn]]) -> str:
    """The text of the prompt with these exemplars."""
    turns = [turn for round in exemplars for turn in round]
    return prompts.render(
      [*turns, *self.doc_to_turns(item)], is_chat=self.context.is_chat
    )

  def request(self, item: Item) -> GenerateRequest:
    """The prompt within the window, room for the answer left.

    Raises:
      ValueError: There is none.
    """
    tokenizer, window = self.context.tokenizer, self.context.window
    if window <= self.max_gen_toks:
      raise ValueError(
        f'{self.name}: an answer of {self.max_gen_toks} tokens fills the '
        f'window of {window}. Take a larger one.'
      )
    exemplars = list(self.fewshot(item))
    while True:
      ids = tokenizer.encode(self.prompt(item, exemplars))
      if len(ids) <= window or not exemplars:
        break
      exemplars.pop()
    return GenerateRequest(
      prompt=prompts.cut_left(ids, window - self.max_gen_toks, tokenizer),
      max_new_tokens=self.max_gen_toks,
      decided=self._decided(item) if self.context.settings.early_stop else None,
    )

  def answer(self, item: Item, result: GenerateResult) -> Record:
    """`resps` holds the model's text, `tokens` what it was decoded from."""
    del item
    return {
      'resps': [result.text],
      'tokens': result.tokens.tolist(),
      'n_tokens': len(result.tokens),
      'stop_reason': result.stop_reason,
      'nonfinite': result.stop_reason == 'nonfinite',
    }

  def score(self, item: Item, answer: Record) -> Record:
    """Every reading of the text."""
    [text] = answer['resps']
    if self._is_cut:
      text = text.partition(prompts.INSTRUCTION)[0]
    filtered, metrics = {}, {}
    for reading in self.readings:
      prediction = reading.filter(item, text)
      filtered[reading.name] = prediction
      suffix = '' if reading is self.readings[0] else f'_{reading.name}'
      for name, value in reading.mark(item, prediction).items():
        metrics[f'{name}{suffix}'] = float(value)
    return {
      'target': self.doc_to_target(item),
      'filtered_resps': filtered,
      'metrics': metrics,
    }

  def is_cut_short(self, item: Item, answer: Record) -> bool:
    """See `Task`."""
    if answer['stop_reason'] != 'decided':
      return False
    [text] = answer['resps']
    decided = self._decided(item)
    return decided is None or not decided(text)

  def aggregate(
    self, samples: Sequence[Record], *, complete: bool
  ) -> list[Metric]:
    """Means of all metrics, then what tells a broken model."""
    if self.macro_over:
      found = aggregates.macro_means(
        self.name, samples, self.macro_over, complete=complete
      )
    else:
      found = aggregates.means(samples)
    return [
      *found,
      *self.extra_metrics(samples),
      aggregates.empty_share(samples, self.readings[0].name),
      aggregates.nonfinite(samples),
    ]

  @property
  def _is_cut(self) -> bool:
    """Whether the profile cuts answers at the next instruction."""
    profile = self.context.settings.profile
    return self.context.is_chat and profile == 'oc-2024-01'

  def _decided(self, item: Item) -> Decided | None:
    if self.stop_when is None:
      return None
    decided = self.stop_when(item)
    if not self._is_cut:
      return decided

    def decided_or_cut(text: Text) -> bool:
      head, is_cut = prompts.before_instruction(text)
      return is_cut or decided(head)

    return decided_or_cut
