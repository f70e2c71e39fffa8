"""The corpora by name, and where their texts are.

| name                         | texts                                        |
|------------------------------|----------------------------------------------|
| `wikipedia`                  | articles of the English Wikipedia, from the  |
|                              | hub; what the papers used                    |
| `wikipedia_passages`         | passages, from a file under the data root    |
| `wikipedia_passages+wikitext`| and the paragraphs of `wiki.valid.raw`       |
| `file:PATH`                  | one text a line                              |
| `generated`                  | drawn by the model itself: for machines      |
|                              | without any corpus                           |
"""

import dataclasses
import functools
import hashlib
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from me_jax.data import sources
from me_jax.edits import generated_text
from me_jax.edits.corpus import Corpus
from me_jax.models.language_model import LanguageModel

NAMES = (
  'wikipedia',
  'wikipedia_passages',
  'wikipedia_passages+wikitext',
  'file:PATH',
  'generated',
)
_HUB = ('wikimedia/wikipedia', '20231101.en')
_PASSAGES = 'wikitext/wikipedia_passages.txt'
_WIKITEXT = 'wikitext/wiki.valid.raw'
_HEADING = re.compile(r'=+ .* =+')


@dataclasses.dataclass(frozen=True, eq=False)
class TextCorpus:
  """Stored texts.

  Attributes:
    id: Name and version, or a hash.
    read: Gives the texts, in an order of their own; there may be millions.
    encode: Text to ids with the tokenizer's own special tokens.
  """

  id: str
  read: Callable[[], Sequence[str]]
  encode: Callable[[str], list[int]]

  def rows(self, max_length: int, seed: int) -> Iterator[list[int]]:
    texts = self.read()
    order = np.random.default_rng(seed).permutation(len(texts))
    for i in order:
      row = self.encode(texts[int(i)])[:max_length]
      if row:
        yield row


def open_corpus(
  name: str, model: LanguageModel, data: sources.DataSources
) -> Corpus:
  """The corpus of that name; see the module's table.

  Raises:
    ValueError: There is no such name.
    FileNotFoundError: Its texts are not at hand; says what to do.
  """
  encode = model.tokenizer.encode
  if name == 'generated':
    return generated_text.GeneratedCorpus(model)
  if name == 'wikipedia':
    # 20 GB that are not needed where the statistics are on the disk.
    read = functools.partial(_wikipedia, data)
    return TextCorpus(f'{_HUB[0]} {_HUB[1]}', read, encode)
  if name in ('wikipedia_passages', 'wikipedia_passages+wikitext'):
    texts = _lines(data.find(_PASSAGES))
    if name != 'wikipedia_passages':
      lines = _lines(data.find(_WIKITEXT))
      texts += [line for line in lines if not _HEADING.fullmatch(line)]
  elif name.startswith('file:'):
    path = pathlib.Path(name.removeprefix('file:'))
    if not path.is_file():
      raise FileNotFoundError(
        f'No file {path}: file:PATH expects the path of a text file with one '
        'text a line.'
      )
    texts, name = _lines(path), f'file:{path.name}'
  else:
    raise ValueError(f'No corpus {name!r}; there are {", ".join(NAMES)}.')
  # The file may be another one tomorrow.
  content = hashlib.sha256('\n'.join(texts).encode()).hexdigest()
  return TextCorpus(f'{name} {content[:16]}', lambda: texts, encode)


def _lines(path: pathlib.Path) -> list[str]:
  try:
    text = path.read_text(encoding='utf-8')
  except UnicodeDecodeError as e:
    raise ValueError(
      f'{path}: not UTF-8 text at byte {e.start}: {e.reason}.'
    ) from e
  # Not splitlines: passages may hold separators that are no line ends.
  return [line.strip() for line in text.split('\n') if line.strip()]


class _Articles(Sequence[str]):
  """The texts of a table, read when asked for."""

  def __init__(self, table: Any):
    self._table = table

  def __len__(self) -> int:
    return len(self._table)

  def __getitem__(self, index):
    return self._table[index]['text']


def _wikipedia(data: sources.DataSources) -> Sequence[str]:
  advice = (
    f'The corpus wikipedia is {_HUB[0]} ({_HUB[1]}, about 20 GB) from the '
    'public hub. Without it, choose one of '
    f'{", ".join(n for n in NAMES if n != "wikipedia")}.'
  )
  if not data.allow_hub:
    raise FileNotFoundError(f'The hub is not asked, as configured. {advice}')
  # Slow to import, and only this corpus needs it.
  import datasets

  try:
    table = datasets.load_dataset(*_HUB, split='train', streaming=False)
  # Whatever goes wrong there (network, login, disk), the answer to the caller
  # is the same: the texts are not at hand, for this reason.
  except Exception as e:
    raise FileNotFoundError(f'{advice} ({type(e).__name__}: {e})') from e
  return _Articles(table)
