import json

import numpy as np
import pytest
from evals_fakes import CharTokenizer, folder

from me_jax.evals import commonsenseqa, commonsenseqa_cloze, letters
from me_jax.generation import LlamaPredictor
from me_jax.typing import GenerateResult, ModelState, ScoreResult


def _record(i, **changes):
  return {
    'answerKey': 'ABCDE'[i % 5],
    'id': f'id{i}',
    'question': {
      'question_concept': 'none',
      'choices': [
        {'label': letter, 'text': f'{letter.lower()}{i}'} for letter in 'ABCDE'
      ],
      'stem': f'Q{i}?',
    },
    **changes,
  }


def _write(root, split, records):
  path = root / 'commonsenseqa' / f'{split}_rand_split.jsonl'
  path.parent.mkdir(exist_ok=True)
  path.write_text(''.join(json.dumps(r) + '\n' for r in records))


@pytest.fixture
def sources(tmp_path):
  _write(tmp_path, 'train', [_record(i) for i in range(10)])
  _write(tmp_path, 'dev', [_record(i) for i in range(20, 23)])
  return folder(tmp_path)


def _generated(text, stop_reason='length'):
  return GenerateResult(
    tokens=np.zeros(len(text), np.int32), text=text, stop_reason=stop_reason
  )


def _vectors(spec_dir):
  return json.loads((spec_dir / 'benchmark_vectors.json').read_text())


def test_prompts_equal_the_vectors(spec_dir):
  cases = [
    v
    for v in _vectors(spec_dir)['prompts']
    if v['task'] == 'commonsense_qa' and v['model'] == 'base'
  ]
  assert cases
  for case in cases:
    fields = case['fields']
    text = commonsenseqa.prompt(fields['exemplars'], fields['test'])
    assert text == case['prompt']


def test_extraction_equals_the_vectors(spec_dir):
  cases = _vectors(spec_dir)['first_capital']
  assert cases
  for text, expected in cases:
    assert letters.first_capital(text) == expected


def test_the_real_data(data_root):
  task = commonsenseqa.CommonsenseQa(CharTokenizer(), folder(data_root))
  items = task.items()
  assert len(items) == 1221
  text = CharTokenizer().decode(task.request(items[0]).prompt)
  assert text.count('Answer:') == 9
  assert text.endswith('E. new york\nAnswer:')


def test_the_request_has_the_first_eight_exemplars(sources):
  tokenizer = CharTokenizer()
  task = commonsenseqa.CommonsenseQa(tokenizer, sources)
  item = task.items()[0]
  request = task.request(item)
  text = tokenizer.decode(request.prompt)
  assert text.startswith('Q0?\nA. a0\n')
  assert '\nE. e7\nAnswer:\nC\nQ20?\nA. a20' in text
  assert request.max_new_tokens == 100
  assert task.request(item) == request


def test_early_stop_is_a_switch_and_waits_for_a_capital(sources):
  on, off = (
    commonsenseqa.CommonsenseQa(CharTokenizer(), sources, early_stop=value)
    for value in (True, False)
  )
  item = on.items()[0]
  assert off.request(item).decided is None
  decided = on.request(item).decided
  assert [decided(t) for t in ('', '\n b', '\n b. C')] == [False, False, True]


def test_a_decided_text_never_changes_its_answer():
  rng = np.random.default_rng(0)
  for _ in range(500):
    text = ''.join(rng.choice(list('abAB \n选éÉ.')) for _ in range(12))
    for end in range(13):
      if commonsenseqa._decided(text[:end]):
        answers = {letters.first_capital(text[:e]) for e in range(end, 13)}
        assert answers == {letters.first_capital(text)}


@pytest.mark.parametrize(
  ('fits', 'missing', 'shots'), [(8, 0, 8), (8, 1, 7), (3, 0, 3), (3, 1, 2)]
)
def test_long_prompts_lose_exemplars_then_text(
  sources, monkeypatch, fits, missing, shots
):
  """The window holds `fits` exemplars but for `missing` tokens.

  Dropping looks at the window, cutting leaves room for the output.
  """
  tokenizer = CharTokenizer()
  task = commonsenseqa.CommonsenseQa(tokenizer, sources)
  item = task.items()[0]
  train = [e.fields for e in commonsenseqa.read_items(sources, 'train')]
  text = lambda n: commonsenseqa.prompt(train[:n], item.fields)
  window = 1 + len(text(fits)) - missing
  monkeypatch.setattr(commonsenseqa.prompts, 'WINDOW', window)
  request = task.request(item)
  room = min(window - 100 - 1, len(text(shots)))
  assert request.prompt[0] == 1
  assert tokenizer.decode(request.prompt) == text(shots)[-room:]


def test_a_sample_reads_the_first_capital(sources):
  task = commonsenseqa.CommonsenseQa(CharTokenizer(), sources)
  item = task.items()[0]
  sample = task.sample(item, _generated('\nA. a20\nQ', 'decided'))
  assert sample['resps'] == ['\nA. a20\nQ']
  assert sample['filtered_resps'] == ['A'] and sample['target'] == 'A'
  assert sample['correct'] and sample['stop_reason'] == 'decided'
  assert not task.sample(item, _generated('The A'))['correct']


def test_aggregate_shows_empty_and_non_finite_outputs(sources):
  task = commonsenseqa.CommonsenseQa(CharTokenizer(), sources)
  item = task.items()[0]
  samples = [
    task.sample(item, _generated(text, reason))
    for text, reason in (
      ('A', 'eos'),
      ('B', 'eos'),
      ('', 'nonfinite'),
      ('b', 'length'),
    )
  ]
  metrics = task.aggregate(samples, complete=True)
  values = {m.name: m.value for m in metrics}
  assert metrics[0].name == 'accuracy' and metrics[0].n == 4
  assert metrics[0].ci_low < 25 < metrics[0].ci_high
  assert values == {
    'accuracy': 25,
    'predicted_A': 25,
    'predicted_B': 25,
    'predicted_C': 0,
    'predicted_D': 0,
    'predicted_E': 0,
    'predicted_empty': 50,
    'n_nonfinite': 1,
  }


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'answerKey': 'F'}, 'one of them as answerKey'),
    ({'question': {'stem': 'Q?', 'choices': []}}, 'expected the choices A'),
    ({'question': 'Q?'}, "'question' must be dict"),
    ({'id': 7}, "'id' must be str"),
  ],
)
def test_damaged_records_are_named(sources, changes, message):
  _write(sources.data_root, 'dev', [_record(0), _record(1, **changes)])
  task = commonsenseqa.CommonsenseQa(CharTokenizer(), sources)
  with pytest.raises(ValueError, match=message) as info:
    task.items()
  assert 'dev_rand_split.jsonl: record 1' in str(info.value)


def test_too_few_exemplars_are_refused(sources):
  _write(sources.data_root, 'train', [_record(0)])
  task = commonsenseqa.CommonsenseQa(CharTokenizer(), sources)
  with pytest.raises(ValueError, match='at least 8 CommonsenseQA training'):
    task.request(task.items()[0])


def test_cloze_continuations_are_the_choices(sources):
  tokenizer = CharTokenizer()
  task = commonsenseqa_cloze.CommonsenseQaCloze(tokenizer, sources)
  request = task.request(task.items()[0])
  assert tokenizer.decode(request.context) == 'Question: Q20?\nAnswer: '
  assert [tokenizer.decode(c) for c in request.continuations] == [
    f'{letter}20' for letter in 'abcde'
  ]


def _scored(*logprobs):
  return ScoreResult(
    logprobs=tuple(np.array(lp, np.float32) for lp in logprobs),
    greedy=tuple(np.zeros(len(lp), np.int32) for lp in logprobs),
    context_logprobs=None,
  )


def test_cloze_has_three_readings(tmp_path):
  record = _record(0)
  for choice, text in zip(
    record['question']['choices'],
    ('ab', 'a' * 40, 'abc', 'abc', 'abc'),
    strict=True,
  ):
    choice['text'] = text
  _write(tmp_path, 'dev', [record])
  task = commonsenseqa_cloze.CommonsenseQaCloze(
    CharTokenizer(), folder(tmp_path)
  )
  result = _scored([-3.0], [-8.0], [-2.0, -2.0], [-9.0], [-9.0])
  sample = task.sample(task.items()[0], result)
  assert sample['resps'] == [-3.0, -8.0, -4.0, -9.0, -9.0]
  assert sample['pred_sum'] == 'A'
  assert sample['pred_per_token'] == 'C'
  assert sample['filtered_resps'] == ['B'] and not sample['correct']
  metrics = {m.name: m.value for m in task.aggregate([sample], complete=True)}
  assert list(metrics)[0] == 'accuracy_per_char'
  assert metrics['accuracy_per_char'] == 0
  assert metrics['accuracy_sum'] == 100
  assert metrics['accuracy_per_token'] == 0


def test_cloze_counts_non_finite_scores(sources):
  task = commonsenseqa_cloze.CommonsenseQaCloze(CharTokenizer(), sources)
  result = _scored(*[[float('nan')]] * 5)
  sample = task.sample(task.items()[1], result)
  assert sample['filtered_resps'] == ['A'] and sample['nonfinite']
  json.dumps(sample, allow_nan=False)


def test_early_stop_changes_no_answer(sources, tiny):
  """A model's own outputs, with and without."""
  predictor = LlamaPredictor(tiny.config, tiny.tokenizer)
  predictions, lengths = [], []
  for early_stop in (True, False):
    task = commonsenseqa.CommonsenseQa(
      tiny.tokenizer, sources, early_stop=early_stop
    )
    items = task.items()
    results = dict(
      predictor.generate(
        ModelState(params=tiny.params), [task.request(i) for i in items]
      )
    )
    samples = [task.sample(item, results[i]) for i, item in enumerate(items)]
    predictions.append([s['filtered_resps'] for s in samples])
    lengths.append(sum(s['n_tokens'] for s in samples))
  assert predictions[0] == predictions[1]
  assert lengths[0] <= lengths[1]
