import hashlib
import json

import numpy as np
import pytest
from evals_fakes import CharTokenizer, folder, sample_of, task_context

from me_jax.evals import commonsenseqa, commonsenseqa_exemplars
from me_jax.evals.commonsenseqa_cloze import commonsenseqa_cloze
from me_jax.generation import LlamaPredictor
from me_jax.typing import GenerateResult, ModelState


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


def _task(sources, tokenizer=None, **settings):
  return commonsenseqa.commonsenseqa(
    task_context(sources, tokenizer, **settings)
  )


def _generated(text, stop_reason='length'):
  return GenerateResult(
    tokens=np.zeros(len(text), np.int32), text=text, stop_reason=stop_reason
  )


def _of_fields(fields, i):
  """A line of the data file from the fields of a vector."""
  choices = [{'label': x, 'text': fields[x]} for x in 'ABCDE']
  return {
    'id': f'v{i}',
    'answerKey': fields['answerKey'],
    'question': {'stem': fields['question'], 'choices': choices},
  }


@pytest.mark.parametrize('is_chat', [False, True])
def test_prompts_equal_the_vectors(spec_dir, tmp_path, is_chat):
  vectors = json.loads((spec_dir / 'benchmark_vectors.json').read_text())
  model = 'chat' if is_chat else 'base'
  cases = [
    v
    for v in vectors['prompts']
    if v['task'] == 'commonsense_qa' and v['model'] == model
  ]
  assert cases
  for case in cases:
    fields = case['fields']
    shots = [_of_fields(e, i) for i, e in enumerate(fields['exemplars'])]
    _write(tmp_path, 'train', shots)
    _write(tmp_path, 'dev', [_of_fields(fields['test'], 8)])
    task = _task(folder(tmp_path), is_chat=is_chat)
    [item] = task.items()
    text = task.prompt(item, task.fewshot(item))
    assert text == case['prompt'] and len(text) == case['chars']
    assert hashlib.sha256(text.encode()).hexdigest() == case['sha256']
    assert CharTokenizer().decode(task.request(item).prompt) == text


def test_the_real_data(data_root):
  task = _task(folder(data_root))
  items = task.items()
  assert len(items) == 1221
  text = CharTokenizer().decode(task.request(items[0]).prompt)
  assert text.count('Answer:') == 9
  assert text.endswith('E. new york\nAnswer:')


def test_the_request_has_the_first_eight_exemplars(sources):
  tokenizer = CharTokenizer()
  task = _task(sources)
  item = task.items()[0]
  request = task.request(item)
  text = tokenizer.decode(request.prompt)
  assert text.startswith('Q0?\nA. a0\n')
  assert '\nE. e7\nAnswer:\nC\nQ20?\nA. a20' in text
  assert 'Q8?' not in text
  assert request.max_new_tokens == 100
  assert task.request(item).prompt == request.prompt


def test_exemplars_may_be_listed(sources, tmp_path):
  path = tmp_path / 'nearest.json'
  chosen = {f'id{i}': [f'id{9 - j}' for j in range(8)] for i in range(20, 23)}
  commonsenseqa_exemplars.write(path, chosen)
  task = _task(sources, exemplars=f'file:{path}')
  fixed = _task(sources)
  assert task.version == 'commonsenseqa_gen_c946f2, listed exemplars'
  assert fixed.version == 'commonsenseqa_gen_1da2d0'
  item = task.items()[0]
  text = task.prompt(item, task.fewshot(item))
  places = [text.index(f'Q{i}?') for i in (*range(9, 1, -1), 20)]
  assert places == sorted(places) and text.count('Answer:') == 9


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    ('{"id20": ["id0"]}', "'id20' has 1 exemplars, expected 8"),
    ('{"id20": ["id77"]}', "'id77' is no id of .* Take the complete train_"),
    ('{}', "no exemplars for the question 'id20'. Write the list"),
    ('["id20"]', 'expected a JSON object'),
    ('{', 'expected a JSON object'),
  ],
)
def test_damaged_lists_of_exemplars_are_named(
  sources, tmp_path, content, message
):
  path = tmp_path / 'nearest.json'
  path.write_text(content)
  task = _task(sources, exemplars=f'file:{path}')
  with pytest.raises(ValueError, match=message) as info:
    task.request(task.items()[0])
  assert 'nearest.json' in str(info.value)


def test_the_nearest_questions_by_an_embedding(sources):
  """The embedding is the number of the question, as an angle."""

  def embed(texts):
    angles = [int(t.partition('?')[0][1:]) * 0.05 for t in texts]
    return np.array([(7 * np.cos(a), 7 * np.sin(a)) for a in angles])

  train = commonsenseqa.read_items(sources, 'train')
  dev = commonsenseqa.read_items(sources, 'dev')
  found = commonsenseqa_exemplars.nearest(embed, train, dev)
  assert found == {item.id: [f'id{i}' for i in range(9, 1, -1)] for item in dev}


def test_early_stop_is_a_switch_and_waits_for_a_lone_option(sources):
  on, off = (_task(sources, early_stop=value) for value in (True, False))
  item = on.items()[0]
  assert off.request(item).decided is None
  decided = on.request(item).decided
  texts = ('', '\n b', '\n T', '\n b. C', '\n b. C\n', 'The (C)')
  assert [decided(t) for t in texts] == [False] * 4 + [True] * 2


@pytest.mark.parametrize(
  ('fits', 'missing', 'shots'), [(8, 0, 8), (8, 1, 7), (3, 0, 3), (3, 1, 2)]
)
def test_long_prompts_lose_exemplars_then_text(sources, fits, missing, shots):
  """The window holds `fits` exemplars but for `missing` tokens.

  Dropping looks at the window, cutting leaves room for the output.
  """
  task = _task(sources)
  item = task.items()[0]
  text = lambda n: task.prompt(item, task.fewshot(item)[:n])
  window = 1 + len(text(fits)) - missing
  request = _task(sources, window=window).request(item)
  room = min(window - 100 - 1, len(text(shots)))
  assert request.prompt[0] == 1
  assert CharTokenizer().decode(request.prompt) == text(shots)[-room:]


def test_a_sample_reads_the_first_capital_and_the_first_option(sources):
  task = _task(sources)
  item = task.items()[0]
  sample = sample_of(task, item, _generated('\nA. a20\nQ', 'decided'))
  assert sample['resps'] == ['\nA. a20\nQ'] and sample['target'] == 'A'
  assert sample['filtered_resps'] == {'oc': 'A', 'clean': 'A'}
  assert sample['metrics'] == {'accuracy': 1, 'accuracy_clean': 1}
  assert sample['stop_reason'] == 'decided'
  sample = sample_of(task, item, _generated('The A'))
  assert sample['filtered_resps'] == {'oc': 'T', 'clean': 'A'}
  assert sample['metrics'] == {'accuracy': 0, 'accuracy_clean': 1}


def test_aggregate_shows_empty_and_non_finite_outputs(sources):
  task = _task(sources)
  item = task.items()[0]
  samples = [
    sample_of(task, item, _generated(text, reason))
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
    'accuracy_clean': 25,
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
  with pytest.raises(ValueError, match=message) as info:
    _task(sources).items()
  assert 'dev_rand_split.jsonl: record 1' in str(info.value)


def test_too_few_exemplars_are_refused(sources):
  _write(sources.data_root, 'train', [_record(0)])
  task = _task(sources)
  with pytest.raises(ValueError, match='at least 8 CommonsenseQA training'):
    task.request(task.items()[0])


def test_cloze_continuations_are_the_choices(sources):
  tokenizer = CharTokenizer()
  task = commonsenseqa_cloze(task_context(sources))
  item = task.items()[0]
  request = task.request(item)
  assert tokenizer.decode(request.context) == 'Question: Q20?\nAnswer:'
  assert [tokenizer.decode(c) for c in request.continuations] == [
    f' {letter}20' for letter in 'abcde'
  ]
  assert task.doc_to_target(item) == item.fields['answerKey'] == 'A'


def test_early_stop_changes_no_answer(sources, tiny):
  """A model's own outputs, with and without."""
  predictor = LlamaPredictor(tiny.config, tiny.tokenizer)
  predictions, lengths = [], []
  for early_stop in (True, False):
    task = _task(sources, tiny.tokenizer, early_stop=early_stop)
    items = task.items()
    results = dict(
      predictor.generate(
        ModelState(params=tiny.params), [task.request(i) for i in items]
      )
    )
    samples = [
      sample_of(task, item, results[i]) for i, item in enumerate(items)
    ]
    predictions.append([s['filtered_resps'] for s in samples])
    lengths.append(sum(s['n_tokens'] for s in samples))
  assert predictions[0] == predictions[1]
  assert lengths[0] <= lengths[1]
