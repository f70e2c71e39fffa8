import json
import logging

import numpy as np
import pytest
from evals_fakes import CharTokenizer, folder, task_context

from me_jax.analysis import answers as answers_lib
from me_jax.evals import commonsenseqa, samples
from me_jax.evals.task import decode_settings, prompt_hash
from me_jax.typing import GenerateResult


def _question(i):
  return {
    'answerKey': 'A',
    'id': f'id{i}',
    'question': {
      'choices': [{'label': x, 'text': x.lower()} for x in 'ABCDE'],
      'stem': f'Q{i}?',
    },
  }


QUERY = 'Q21?\nA. a\nB. b\nC. c\nD. d\nE. e\nAnswer:'


class OtherTokenizer(CharTokenizer):
  """Other ids for the same characters, and two of a kind are one token."""

  def encode(self, text):
    ids = [1] * self.adds_bos
    for character in text.replace('zz', '\x01'):
      ids.append(ord(character) + 500)
    return ids

  def decode(self, ids):
    text = ''.join(chr(max(i - 500, 0)) for i in ids if i > 2)
    return text.replace('\x01', 'zz')


@pytest.fixture
def task(tmp_path):
  return _task(tmp_path)


def _task(root, **settings):
  for split, numbers in {'train': range(8), 'dev': (20, 21, 22)}.items():
    path = root / 'commonsenseqa' / f'{split}_rand_split.jsonl'
    path.parent.mkdir(exist_ok=True)
    path.write_text(''.join(json.dumps(_question(i)) + '\n' for i in numbers))
  settings = {'early_stop': False, **settings}
  return commonsenseqa.commonsenseqa(task_context(folder(root), **settings))


def _stored(task, text, tokens=None, path=None):
  """The log with one answer, after its way over the disk."""
  item = task.items()[1]
  if tokens is None:
    tokens = [ord(c) + 3 for c in text]
  result = GenerateResult(
    tokens=np.array(tokens, np.int32), text=text, stop_reason='length'
  )
  request = task.request(item)
  record = {
    'doc_id': item.id,
    'group': item.group,
    'version': task.version,
    'prompt_hash': prompt_hash(request),
    'decode': decode_settings(request),
    'state_fingerprint': 'f' * 64,
    'state_checksum': 'c' * 16,
    **task.answer(item, result),
  }
  if path is None:
    return {item.id: record}
  with samples.SampleWriter(path, flush_every=1) as writer:
    writer.add(record)
  return samples.read_samples(path, state_fingerprint='f' * 64)


def test_generated_ids_are_kept(task, tmp_path):
  stored = _stored(task, ' fizz', path=tmp_path / 'log.jsonl')
  own = CharTokenizer()
  [answer] = answers_lib.from_samples(task, stored, scorer=own)
  assert answer.item_id == 'id21'
  assert list(answer.context) == own.encode(QUERY)
  assert answer.context[0] == 1 and own.decode(answer.tokens) == ' fizz'


def test_the_whole_prompt(task):
  own = CharTokenizer()
  [answer] = answers_lib.from_samples(
    task, _stored(task, ' so'), scorer=own, context='prompt'
  )
  assert answer.context == task.request(task.items()[1]).prompt
  assert own.decode(answer.context).endswith(f'A\n{QUERY}')
  assert own.decode(answer.context).count('Answer:') == 9


def test_ids_that_no_text_would_give_are_kept(task):
  """A model may say a word in other tokens than a tokenizer would."""

  class Merging(CharTokenizer):
    def encode(self, text):
      return super().encode(text.replace('zz', chr(700)))

    def decode(self, ids):
      return super().decode(ids).replace(chr(700), 'zz')

  [answer] = answers_lib.from_samples(
    task, _stored(task, ' fizz'), scorer=Merging()
  )
  assert len(answer.tokens) == 5


def test_the_end_and_special_tokens_are_no_text(task):
  tokens = [40, 1, 41, 2, 42]
  stored = _stored(task, '%&', tokens=tokens)
  [answer] = answers_lib.from_samples(task, stored, scorer=CharTokenizer())
  assert answer.tokens == (40, 41)


@pytest.mark.parametrize('context', ['question', 'prompt'])
def test_another_vocabulary(task, caplog, context):
  other = OtherTokenizer()
  with caplog.at_level(logging.WARNING):
    [answer] = answers_lib.from_samples(
      task, _stored(task, ' fizz'), scorer=other, context=context
    )
  assert 'tokenised anew' in caplog.text
  assert other.decode(answer.tokens) == ' fizz' and len(answer.tokens) == 4
  text = other.decode(answer.context)
  assert text == QUERY if context == 'question' else text.endswith(QUERY)
  assert answer.context[0] == 1


def test_an_empty_answer(task):
  for scorer in (CharTokenizer(), OtherTokenizer()):
    stored = _stored(task, '')
    [answer] = answers_lib.from_samples(task, stored, scorer=scorer)
    assert answer.tokens == () and len(answer.context) == len(QUERY) + 1


def test_answers_that_were_cut_are_refused(tmp_path):
  task = _task(tmp_path, early_stop=True)
  with pytest.raises(ValueError, match='early_stop=False'):
    answers_lib.from_samples(task, _stored(task, 'A'), scorer=CharTokenizer())


@pytest.mark.parametrize(
  'field, value, message',
  [
    ('version', 'older', 'was stored with version'),
    ('prompt_hash', '0' * 16, 'was stored with prompt_hash'),
    ('tokens', None, 'without its tokens'),
  ],
)
def test_answers_to_something_else_are_refused(task, field, value, message):
  stored = _stored(task, 'A')
  if value is None:
    del stored['id21'][field]
  else:
    stored['id21'][field] = value
  with pytest.raises(ValueError, match=message):
    answers_lib.from_samples(task, stored, scorer=CharTokenizer())


def test_items_of_another_task(task):
  stored = {'id99': _stored(task, 'A')['id21']}
  with pytest.raises(ValueError, match="no item 'id99'"):
    answers_lib.from_samples(task, stored, scorer=CharTokenizer())


def test_texts():
  own = CharTokenizer()
  [first, second] = answers_lib.from_texts(
    own, [('Once', ' upon a time'), ('x', '')]
  )
  assert (first.item_id, second.item_id) == ('0', '1')
  assert list(first.context) == own.encode('Once')
  assert own.decode(first.tokens) == ' upon a time'
  assert second.tokens == ()


def test_a_token_over_the_boundary_belongs_to_the_answer():
  other = OtherTokenizer()
  [answer] = answers_lib.from_texts(other, [('fiz', 'zle')])
  assert other.decode(answer.context) == 'fi'
  assert other.decode(answer.tokens) == 'zzle'


def test_texts_without_a_context():
  with pytest.raises(ValueError, match="'0': no token of the context ''"):
    answers_lib.from_texts(CharTokenizer(adds_bos=False), [('', 'Once')])
