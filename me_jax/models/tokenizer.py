"""Tokenizers: text to ids and back, read from and written to files."""

import dataclasses
import hashlib
import itertools
import json
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import decoders, pre_tokenizers, processors

from me_jax import files

_ROLES = ('bos_token', 'eos_token', 'unk_token', 'pad_token')
_BYTE = re.compile('<0x([0-9A-Fa-f]{2})>')
_NO_CHARACTER = '\ufffd'  # stands for bytes that are no UTF-8


@dataclasses.dataclass(frozen=True, eq=False)
class FastTokenizer:
  """A `me_jax.typing.Tokenizer` over a Rust tokenizer.

  Attributes:
    backend: Does the work. It must neither truncate nor pad.
    roles: Token text of 'eos_token' and, where there are any, 'bos_token',
      'unk_token' and 'pad_token'. A role alone adds no token to a text: what is
      added is up to the post-processor of `backend`.
    chat_template: Kept for whoever loads the saved files; not used here.
  """

  backend: tokenizers.Tokenizer
  roles: Mapping[str, str]
  chat_template: str | None = None

  def __post_init__(self):
    unknown = set(self.roles) - set(_ROLES)
    if unknown:
      raise ValueError(f'Roles are {_ROLES}, got {sorted(unknown)}.')
    eos = self.roles.get('eos_token')
    if eos is None or self.backend.token_to_id(eos) is None:
      raise ValueError(
        f'The tokenizer needs an end token from its vocabulary, got {eos!r}. '
        'Set "eos_token" in tokenizer_config.json.'
      )
    if self.backend.truncation is not None or self.backend.padding is not None:
      raise ValueError(
        'The tokenizer truncates or pads. Call no_truncation() and '
        'no_padding() on it first.'
      )

  @property
  def eos_id(self) -> int:
    """Id of the end token."""
    return self.backend.token_to_id(self.roles['eos_token'])

  @property
  def special_ids(self) -> frozenset[int]:
    """Ids that `decode` skips."""
    added = self.backend.get_added_tokens_decoder()
    return frozenset(i for i, token in added.items() if token.special)

  @property
  def vocab_size(self) -> int:
    """Number of tokens, added ones included; a model may have spare rows."""
    return self.backend.get_vocab_size(with_added_tokens=True)

  @property
  def fingerprint(self) -> str:
    """SHA-256 over vocabulary, merges, rules and roles."""
    content = [json.loads(self.backend.to_str()), dict(self.roles)]
    return hashlib.sha256(files.canonical_json(content).encode()).hexdigest()

  def encode(self, text: str) -> list[int]:
    """Ids with exactly the special tokens that this tokenizer adds."""
    return self.backend.encode(text).ids

  def encode_with_offsets(
    self, text: str
  ) -> tuple[list[int], list[tuple[int, int]]]:
    """`encode`, and the [start, end) characters of each id.

    Special tokens that the tokenizer adds have an empty span. Ids that are
    parts of one character all have that character's span.
    """
    encoding = self.backend.encode(text)
    return encoding.ids, encoding.offsets

  def decode(self, ids: Sequence[int]) -> str:
    """Text of `ids`, special tokens skipped.

    Bytes that are part of no character become U+FFFD, and no others do. So
    the text of the first ids, without U+FFFD at its end, begins the whole text.
    """
    ids = [int(i) for i in ids]
    text = self.backend.decode(ids, skip_special_tokens=True)
    decoder = self.backend.decoder
    if _NO_CHARACTER not in text or not _joins_bytes(decoder):
      return text
    # The backend has replaced each run of byte tokens as a whole.
    special = self.special_ids
    tokens = [self.backend.id_to_token(i) for i in ids if i not in special]
    known = [token for token in tokens if token is not None]
    return decoder.decode(list(_with_whole_characters(known)))

  def save(self, directory: files.PathLike) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json`.

    `transformers.AutoTokenizer`, `from_directory` and `from_saved` read them.
    """
    directory = pathlib.Path(directory)
    config: dict[str, Any] = {
      'tokenizer_class': 'PreTrainedTokenizerFast',
      'clean_up_tokenization_spaces': False,
      **self.roles,
    }
    if self.chat_template is not None:
      config['chat_template'] = self.chat_template
    files.write_atomic(directory / 'tokenizer.json', self.backend.to_str())
    files.write_atomic(
      directory / 'tokenizer_config.json',
      json.dumps(config, indent=2, ensure_ascii=False) + '\n',
    )


def from_directory(path: files.PathLike) -> FastTokenizer:
  """The tokenizer in a directory, or at a Hugging Face hub id.

  Raises:
    ValueError: It has no fast (Rust) version, or needs code of its own.
  """
  # Slow to import, and not needed by models whose tokenizer is in a GGUF file.
  import transformers

  try:
    loaded = transformers.AutoTokenizer.from_pretrained(
      str(path), use_fast=True, trust_remote_code=False
    )
  # The Rust library raises bare Exception for a malformed file.
  except Exception as e:
    raise ValueError(
      f'No tokenizer could be loaded from {path}: {e}. Expected tokenizer.json '
      'and tokenizer_config.json there.'
    ) from e
  if not loaded.is_fast:
    raise ValueError(
      f'{path} has only a slow tokenizer ({type(loaded).__name__}). Save a '
      'tokenizer.json beside it, for example with '
      'transformers.convert_slow_tokenizer.'
    )
  backend = loaded.backend_tokenizer
  backend.no_truncation()
  backend.no_padding()
  if isinstance(backend.post_processor, processors.TemplateProcessing):
    # transformers puts in one that adds nothing where there was none.
    if backend.num_special_tokens_to_add(is_pair=False) == 0:
      backend.post_processor = None
  tokens = {role: getattr(loaded, role, None) for role in _ROLES}
  template = loaded.chat_template
  return FastTokenizer(
    backend,
    {role: str(token) for role, token in tokens.items() if token is not None},
    template if isinstance(template, str) else None,
  )


def from_saved(directory: files.PathLike) -> FastTokenizer:
  """What `FastTokenizer.save` wrote there, exactly.

  Raises:
    ValueError: A file is missing or damaged.
  """
  directory = pathlib.Path(directory)
  try:
    content = (directory / 'tokenizer.json').read_text(encoding='utf-8')
    config = json.loads(
      (directory / 'tokenizer_config.json').read_text(encoding='utf-8')
    )
    backend = tokenizers.Tokenizer.from_str(content)
    roles = {role: config[role] for role in _ROLES if role in config}
    return FastTokenizer(backend, roles, config.get('chat_template'))
  # The Rust library raises bare Exception for a malformed file.
  except Exception as e:
    raise ValueError(
      f'The tokenizer files in {directory} are damaged: {e}. Save the model '
      'again.'
    ) from e


def byte_tokenizer() -> FastTokenizer:
  """One id per byte of UTF-8 (in no order of note), and `<eos>`, id 256."""
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  backend = tokenizers.Tokenizer(
    tokenizers.models.BPE(
      vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]
    )
  )
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(
    add_prefix_space=False, use_regex=False
  )
  backend.decoder = decoders.ByteLevel()
  backend.add_special_tokens(['<eos>'])
  return FastTokenizer(backend, {'eos_token': '<eos>'})


def _joins_bytes(decoder: decoders.Decoder | None) -> bool:
  """Whether tokens such as `<0x41>` stand for bytes."""
  return decoder is not None and decoder.decode(['<0x41>']) == 'A'


def _with_whole_characters(tokens: Iterable[str]) -> Iterator[str]:
  """The tokens, with U+FFFD for each byte token that is part of no character.

  As in SentencePiece. The runs of byte tokens that are left are UTF-8.
  """
  is_byte = lambda token: _BYTE.fullmatch(token) is not None
  for are_bytes, run in itertools.groupby(tokens, is_byte):
    if not are_bytes:
      yield from run
      continue
    data = bytes(int(_BYTE.fullmatch(token)[1], 16) for token in run)
    for character in data.decode('utf-8', errors='surrogateescape'):
      # Bytes that are no UTF-8 come out as halves of surrogate pairs.
      if '\udc80' <= character <= '\udcff':
        yield _NO_CHARACTER
      else:
        yield from (f'<0x{byte:02X}>' for byte in character.encode())
