"""CommonsenseQA (Talmor et al. 2019), 8-shot, by generation.

Prompts and extraction are those of OpenCompass 0.2.0, configuration
`commonsenseqa_gen_1da2d0`: the first eight training questions are the
exemplars, and the first capital letter of the output is the answer.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from me_jax.data.sources import DataSources, field, read_jsonl
from me_jax.evals import hub_tables, letters, prompts
from me_jax.evals.task import Item, Metric, Sample
from me_jax.typing import GenerateRequest, GenerateResult, Tokenizer

LETTERS = 'ABCDE'
_SHOTS = 8
_MAX_NEW_TOKENS = 100


class CommonsenseQa:
  """See `Task`. `fields` are question, A to E and answerKey."""

  name = 'commonsenseqa'
  mode = 'gen'

  def __init__(
    self,
    tokenizer: Tokenizer,
    sources: DataSources,
    *,
    early_stop: bool = True,
  ):
    """Binds data and tokenizer; files are read when first needed.

    Args:
      tokenizer: The model's.
      sources: Where `commonsenseqa` is.
      early_stop: Stop a generation once its answer is decided. The scores are
        the same without, the stored outputs are longer.
    """
    self._tokenizer = tokenizer
    self._sources = sources
    self._decided = _decided if early_stop else None

  def items(self) -> list[Item]:
    """The 1,221 questions of the development split."""
    return read_items(self._sources, 'dev')

  def request(self, item: Item) -> GenerateRequest:
    """Eight exemplars and the question.

    A prompt of more than 2,048 tokens loses exemplars from the last on; then
    it is cut on the left to leave room for the output.
    """
    exemplars = [e.fields for e in self._exemplars]
    while True:
      ids = self._tokenizer.encode(prompt(exemplars, item.fields))
      if len(ids) <= prompts.WINDOW or not exemplars:
        break
      exemplars.pop()
    return GenerateRequest(
      prompt=prompts.cut_left(
        ids, prompts.WINDOW - _MAX_NEW_TOKENS, self._tokenizer
      ),
      max_new_tokens=_MAX_NEW_TOKENS,
      decided=self._decided,
    )

  def sample(self, item: Item, result: GenerateResult) -> Sample:
    """`resps` holds the raw output, `filtered_resps` its first capital."""
    prediction = letters.first_capital(result.text)
    return {
      'target': item.fields['answerKey'],
      'resps': [result.text],
      'filtered_resps': [prediction],
      'correct': prediction == item.fields['answerKey'],
      'n_tokens': len(result.tokens),
      'stop_reason': result.stop_reason,
      'nonfinite': result.stop_reason == 'nonfinite',
    }

  def aggregate(
    self, samples: Sequence[Sample], *, complete: bool
  ) -> list[Metric]:
    """Accuracy, the spread of letters, empty answers, non-finite outputs."""
    del complete  # there are no groups to miss
    empty = sum(s['filtered_resps'] == [''] for s in samples)
    return [
      letters.accuracy('accuracy', samples),
      *letters.spread(samples, LETTERS),
      letters.share('predicted_empty', empty, len(samples)),
      letters.nonfinite(samples),
    ]

  @functools.cached_property
  def _exemplars(self) -> list[Item]:
    items = read_items(self._sources, 'train')
    if len(items) < _SHOTS:
      raise ValueError(
        f'Expected at least {_SHOTS} CommonsenseQA training questions for the '
        f'exemplars, found {len(items)}.'
      )
    return items[:_SHOTS]


def read_items(sources: DataSources, split: str) -> list[Item]:
  """The questions of `split` ('dev' or 'train') in file order, one group.

  Raises:
    FileNotFoundError: The file is nowhere.
    ValueError: A record has not the official form; names file and record.
  """
  path = sources.find(
    f'commonsenseqa/{split}_rand_split.jsonl', hub_tables.commonsenseqa(split)
  )
  return [
    _item(record, split, f'{path}: record {index}')
    for index, record in enumerate(read_jsonl(path))
  ]


def _item(record: Mapping[str, Any], split: str, where: str) -> Item:
  question = field(record, 'question', dict, where=where)
  options = {
    field(choice, 'label', str, where=where): field(
      choice, 'text', str, where=where
    )
    for choice in field(question, 'choices', list, where=where)
  }
  answer = field(record, 'answerKey', str, where=where)
  if sorted(options) != list(LETTERS) or answer not in options:
    raise ValueError(
      f'{where}: expected the choices {", ".join(LETTERS)} and one of them as '
      f'answerKey, found {sorted(options)} and {answer!r}.'
    )
  if not all(options.values()):
    raise ValueError(f'{where}: a choice has no text: {options}.')
  return Item(
    id=field(record, 'id', str, where=where),
    group=split,
    fields={
      'question': field(question, 'stem', str, where=where),
      **options,
      'answerKey': answer,
    },
  )


def prompt(
  exemplars: Sequence[Mapping[str, str]], fields: Mapping[str, str]
) -> str:
  """The text for a base model; each answer stands on a line of its own."""
  turns = []
  for exemplar in exemplars:
    turns += [_question(exemplar), exemplar['answerKey']]
  return prompts.base_prompt([*turns, _question(fields)])


def _question(fields: Mapping[str, str]) -> str:
  options = '\n'.join(f'{letter}. {fields[letter]}' for letter in LETTERS)
  return f'{fields["question"]}\n{options}\nAnswer:'


def _decided(text: str) -> bool:
  """True once no continuation can change the first capital."""
  return letters.first_capital(text) != ''
